"""Calls for one model each, of which a failing one stops no other."""

from collections.abc import Callable, Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from ipnext.errors import IPnextError, RegionUnreachable, Unavailable

T = TypeVar("T")

OF_ONE = (IPnextError, ArithmeticError, AttributeError, LookupError, TypeError, ValueError)
"""Errors that concern one item: those of the platform, and those that an unreadable document or a bug raises."""

NAMED = 3
"""Failed items that a message names at most."""


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
        except OF_ONE as error:
            self.failed.setdefault(model, describe(error))

    def run_all(
        self, calls: Sequence[tuple[str, Callable[[], object]]], pool: ThreadPoolExecutor, beat: Callable[[str], None]
    ) -> None:
        """Run calls, each for a model, side by side; `beat` is called as they end.

        Raises RegionUnreachable: calls that have not begun by then are left out.
        """
        away = list[RegionUnreachable]()

        def one(model: str, call: Callable[[], object]) -> str:
            try:
                if not away:
                    self.run(model, call)
            except RegionUnreachable as error:
                away.append(error)
            return model

        for model in pool.map(one, *zip(*calls, strict=True)) if calls else ():
            beat(f"{model} is reconciled")
        if away:
            raise away[0]


def read_each(
    read: Callable[[Collection[str]], Sequence[T]], models: Sequence[str]
) -> tuple[list[T], Mapping[str, Exception]]:
    """Read many models at once, or one by one if that fails.

    Models that can't be read are left out then, and returned as well.

    Raises Unavailable: the store does not answer.
    """
    try:
        return list(read(models)), {}
    except Unavailable:
        raise
    except OF_ONE:
        return _read_one_by_one(read, models)


def _read_one_by_one(
    read: Callable[[Collection[str]], Sequence[T]], models: Sequence[str]
) -> tuple[list[T], Mapping[str, Exception]]:
    found, failed = list[T](), dict[str, Exception]()
    for model in models:
        try:
            found += read((model,))
        except Unavailable:
            raise
        except OF_ONE as error:
            failed[model] = error
    return found, failed


def describe(error: Exception) -> str:
    """Return an error's message; that of an unforeseen error begins with its type."""
    return error.message if isinstance(error, IPnextError) else f"{type(error).__name__}: {error}"


def name_failed(failed: Mapping[str, str]) -> str:
    """Name the first items that failed, with their errors."""
    named = "; ".join(f"{name}: {failed[name]}" for name in sorted(failed)[:NAMED])
    return named + (f"; and {len(failed) - NAMED} more" if len(failed) > NAMED else "")
