"""Calls for one model each, of which a failing one stops no other."""

from collections.abc import Callable

from ipnext.errors import IPnextError, RegionUnreachable


class SingleCalls:
    """Runs calls and collects the models whose call failed."""

    def __init__(self) -> None:
        self.failed: dict[str, str] = {}
        """Model -> error of its first call that failed."""

    def run(self, model: str, call: Callable[[], object]) -> None:
        """Run a call for a model. Raises RegionUnreachable: the calls for other models would fail, too."""
        try:
            call()
        except RegionUnreachable:
            raise
        except IPnextError as error:
            self.failed.setdefault(model, error.message)
