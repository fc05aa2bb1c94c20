"""A region's access list on disk: the list as the platform sent it, and the router's extract. Both outlive the agent.

Readers of these files learn names of models and keys and digests of secrets, but no key. Only this user may read them.
"""

from collections.abc import Collection
from pathlib import Path

import structlog
from pydantic import ValidationError

from ipnext.infra.atomic_file import replace_file
from ipnext.infra.route_rules import check_access
from ipnext.model.deployment import RouteTable
from ipnext.model.predictions import AccessList, AccessRevision
from ipnext.model.wire import decode


class AccessFile:
    """The list in force, if there is one. The router gets all keys, and the models that have a route in the region."""

    def __init__(self, kept: Path, followed: Path, *, region: str) -> None:
        """`kept` is the file of the list as it was sent, `followed` the router's file."""
        self._kept, self._followed, self._region = kept, followed, region
        self._list = _read(kept)
        self._published: tuple[int, frozenset[str]] | None = None

    @property
    def newest(self) -> AccessRevision:
        """Revision and digest of the list."""
        return AccessRevision.of(self._list)

    def put(self, access: AccessList) -> None:
        """Store a list. StaleWrite if a later one is in force; OSError."""
        check_access(access, self._list, region=self._region)
        if access != self._list:
            replace_file(self._kept, access.model_dump_json().encode(), durable=True, private=True)
            self._list = access

    def publish(self, routed: Collection[str]) -> None:
        """Write the router's file if it is out of date. OSError: the former file stays."""
        if self._list is None:
            return
        wanted = (self._list.revision, frozenset(routed))
        if wanted != self._published:
            models = tuple(one for one in self._list.models if one.model in wanted[1])
            content = self._list.model_copy(update={"models": models})
            replace_file(self._followed, content.model_dump_json().encode(), private=True)
            self._published = wanted

    def closed(self, tables: Collection[RouteTable]) -> frozenset[str]:
        """Return the models that need a credential: by the list, or by their own table if the list does not name them yet."""
        listed = {} if self._list is None else {one.model: one.access.is_open for one in self._list.models}
        return frozenset(table.model for table in tables if not listed.get(table.model, table.access == "open"))


def _read(path: Path) -> AccessList | None:
    """Read the list from a file.

    An unreadable file is set aside; then models that are not open refuse all requests until a new list comes.
    """
    try:
        return decode(AccessList, path.read_bytes())
    except FileNotFoundError:
        return None
    except ValidationError:
        path.replace(path.with_suffix(".refused"))
        structlog.get_logger().error("access list refused", file=str(path))
        return None
