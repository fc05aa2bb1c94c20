"""A region's access list on disk: the list as the platform sent it, and the router's extract. Both outlive the agent.

A region that never got a list goes by its tables, and its router's file says so: a list of revision 0. One that got a
list and can't read it has lost it: then every model needs a credential that nobody can prove, until the next list
comes.

Readers of these files learn names of models and keys and digests of secrets, but no key. Only this user may read them.
"""

from collections.abc import Collection
from contextlib import suppress
from pathlib import Path

import structlog
from pydantic import ValidationError

from ipnext.infra.process.atomic_file import replace_file
from ipnext.infra.route_rules import check_access
from ipnext.model.access.predictions import AccessList, AccessRevision
from ipnext.model.deployment.route_table import RouteTable
from ipnext.model.wire import decode


class AccessFile:
    """The newest list, if there is one. The router gets all keys, and the models that have a route in the region.

    On a full disk the list is kept in memory. The file that cannot be replaced is set aside or removed: an agent or a
    router that starts next has lost its list, rather than an old one.
    """

    def __init__(self, kept: Path, followed: Path, *, region: str) -> None:
        """`kept` is the file of the list as it was sent, `followed` the router's file."""
        self._kept, self._followed, self._region = kept, followed, region
        self._aside = kept.with_suffix(".refused")
        """A list that is no longer gone by, or could not be read. It says that there was one."""
        self._list = self._saved = _read(kept, self._aside)
        self._lost = self._list is None and self._aside.exists()
        self._published: tuple[AccessRevision, frozenset[str]] | None = None
        self._faults: dict[Path, str] = {}

    @property
    def newest(self) -> AccessRevision:
        """Revision and digest of the list."""
        return AccessRevision.of(self._list)

    @property
    def is_published(self) -> bool:
        """Whether the router's file has the list."""
        return self._list is None or (self._published is not None and self._published[0] == self.newest)

    def put(self, access: AccessList) -> None:
        """Take a list, in memory. StaleWrite if a later one was taken."""
        check_access(access, self._list, region=self._region)
        if access != self._list:
            self._list = access
        self._lost = False

    def save(self) -> None:
        """Write the list as it was sent, unless that is done."""
        access = self._list
        if access is not None and access is not self._saved:
            content = access.model_dump_json().encode()
            if self._written(self._kept, content, durable=True):
                self._saved = access
                self._aside.unlink(missing_ok=True)
            else:
                self._set_aside()

    def extract(self, routed: Collection[str]) -> AccessList | None:
        """Return the list for the router; None if there is no list."""
        if self._list is None:
            return None
        models = tuple(one for one in self._list.models if one.model in set(routed))
        return self._list.model_copy(update={"models": models})

    def publish(self, routed: Collection[str]) -> None:
        """Write the router's file if it is out of date."""
        wanted = (self.newest, frozenset(routed))
        content = self.extract(wanted[1]) or self._no_list()
        if content is None or wanted == self._published:
            return
        if self._written(self._followed, content.model_dump_json().encode()):
            self._published = wanted

    def open_models(self, routed: Collection[str]) -> tuple[str, ...]:
        """Return the routed models that the list names as open."""
        access = self.extract(routed)
        return () if access is None else tuple(one.model for one in access.models if one.access.is_open)

    def _no_list(self) -> AccessList | None:
        """Return a list that says that there never was one; None if there was, or if the router's file has one."""
        return None if self._lost or self._followed.exists() else AccessList(revision=0)

    def _set_aside(self) -> None:
        """Leave a file by which the next agent finds that there was a list. A full disk has room for an empty one."""
        with suppress(OSError):
            if self._kept.exists():
                self._kept.replace(self._aside)
            else:
                self._aside.touch(mode=0o600)

    def _written(self, path: Path, content: bytes, *, durable: bool = False) -> bool:
        """Replace a file. The router's is removed if that fails. Each new fault is logged once, and so is its end."""
        log = structlog.get_logger().bind(file=str(path))
        try:
            replace_file(path, content, durable=durable, private=True)
        except OSError as error:
            if path == self._followed:
                with suppress(OSError):
                    path.unlink()
            if self._faults.get(path) != str(error):
                log.warning("access list not written, removed and tried again soon", reason=str(error))
            self._faults[path] = str(error)
            return False
        if self._faults.pop(path, None) is not None:
            log.info("access list written again")
        return True

    def find_closed(self, tables: Collection[RouteTable]) -> frozenset[str]:
        """Return the models that need a credential.

        The list decides, or their own table if the list does not name them yet. All of them if the list is lost.
        """
        if self._lost:
            return frozenset(table.model for table in tables)
        listed = {} if self._list is None else {one.model: one.access.is_open for one in self._list.models}
        return frozenset(table.model for table in tables if not listed.get(table.model, table.access == "open"))


def _read(path: Path, aside: Path) -> AccessList | None:
    """Read the list from a file; one that can't be read is set aside."""
    try:
        return decode(AccessList, path.read_bytes())
    except FileNotFoundError:
        return None
    except ValidationError:
        path.replace(aside)
        structlog.get_logger().error("access list refused", file=str(path))
        return None
