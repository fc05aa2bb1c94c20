"""A region's access list on disk: the list as the platform sent it, and the router's extract. Both outlive the agent.

Readers of these files learn names of models and keys and digests of secrets, but no key. Only this user may read them.
"""

from collections.abc import Collection
from contextlib import suppress
from pathlib import Path

import structlog
from pydantic import ValidationError

from ipnext.infra.atomic_file import replace_file
from ipnext.infra.route_rules import check_access
from ipnext.model.deployment import RouteTable
from ipnext.model.predictions import AccessList, AccessRevision
from ipnext.model.wire import decode


class AccessFile:
    """The newest list, if there is one. The router gets all keys, and the models that have a route in the region.

    On a full disk the list is kept in memory. The file that cannot be replaced is removed: whatever starts next has no
    list, and gets one, rather than an old one.
    """

    def __init__(self, kept: Path, followed: Path, *, region: str) -> None:
        """`kept` is the file of the list as it was sent, `followed` the router's file."""
        self._kept, self._followed, self._region = kept, followed, region
        self._list = self._saved = _read(kept)
        self._published: tuple[AccessRevision, frozenset[str]] | None = None
        self._faults: dict[Path, str] = {}

    @property
    def newest(self) -> AccessRevision:
        """Revision and digest of the list."""
        return AccessRevision.of(self._list)

    @property
    def published(self) -> bool:
        """Whether the router's file has the list."""
        return self._list is None or (self._published is not None and self._published[0] == self.newest)

    def put(self, access: AccessList) -> None:
        """Take a list, in memory. StaleWrite if a later one was taken."""
        check_access(access, self._list, region=self._region)
        if access != self._list:
            self._list = access

    def save(self) -> None:
        """Write the list as it was sent, unless that is done."""
        access = self._list
        if access is not None and access is not self._saved:
            content = access.model_dump_json().encode()
            if self._written(self._kept, content, durable=True):
                self._saved = access

    def extract(self, routed: Collection[str]) -> AccessList | None:
        """Return the list for the router; None if there is no list."""
        if self._list is None:
            return None
        models = tuple(one for one in self._list.models if one.model in set(routed))
        return self._list.model_copy(update={"models": models})

    def publish(self, routed: Collection[str]) -> None:
        """Write the router's file if it is out of date."""
        wanted = (self.newest, frozenset(routed))
        content = self.extract(wanted[1])
        if content is None or wanted == self._published:
            return
        if self._written(self._followed, content.model_dump_json().encode()):
            self._published = wanted

    def _written(self, path: Path, content: bytes, *, durable: bool = False) -> bool:
        """Replace a file; remove it if that fails. Each new fault is logged once, and so is its end."""
        log = structlog.get_logger().bind(file=str(path))
        try:
            replace_file(path, content, durable=durable, private=True)
        except OSError as error:
            with suppress(OSError):
                path.unlink()
            if self._faults.get(path) != str(error):
                log.warning("access list not written, removed and tried again soon", reason=str(error))
            self._faults[path] = str(error)
            return False
        if self._faults.pop(path, None) is not None:
            log.info("access list written again")
        return True

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
