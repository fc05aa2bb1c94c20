"""A region's access list on disk: as it was sent, and what of it the router follows. Both outlive the agent.

Who reads them learns names of models and keys and digests of secrets, and no key: only this user may.
"""

from collections.abc import Collection
from pathlib import Path

import structlog
from pydantic import ValidationError

from ipnext.infra.atomic_file import replace_file
from ipnext.infra.route_rules import check_access
from ipnext.model.deployment import RouteTable
from ipnext.model.predictions import AccessList
from ipnext.model.wire import decode


class AccessFile:
    """The list in force, if there is one. The router gets the models that the region has routes of, and all keys."""

    def __init__(self, kept: Path, followed: Path, *, region: str) -> None:
        """`kept`: where the list lies as it was sent; `followed`: the router's file."""
        self._kept, self._followed, self._region = kept, followed, region
        self._list = _read(kept)
        self._published: tuple[int, frozenset[str]] | None = None

    @property
    def revision(self) -> int:
        """Of the list in force; 0: none."""
        return 0 if self._list is None else self._list.revision

    def put(self, access: AccessList) -> None:
        """Keep a list. StaleWrite if a later one is in force; OSError."""
        check_access(access, self.revision, region=self._region)
        if access != self._list:
            replace_file(self._kept, access.model_dump_json().encode(), durable=True, private=True)
            self._list = access

    def publish(self, routed: Collection[str]) -> None:
        """Write the router's file if it is not as it should be. OSError: the former one stays."""
        if self._list is None:
            return
        wanted = (self._list.revision, frozenset(routed))
        if wanted != self._published:
            models = tuple(one for one in self._list.models if one.model in wanted[1])
            content = self._list.model_copy(update={"models": models})
            replace_file(self._followed, content.model_dump_json().encode(), private=True)
            self._published = wanted

    def closed(self, tables: Collection[RouteTable]) -> frozenset[str]:
        """Those of these models that need a credential: by the list, or by their own table if it has not come to the list yet."""
        listed = {} if self._list is None else {one.model: one.access.is_open for one in self._list.models}
        return frozenset(table.model for table in tables if not listed.get(table.model, table.access == "open"))


def _read(path: Path) -> AccessList | None:
    """The list that a file holds. One that cannot be read is set aside, and models that are not open answer nobody until another comes."""
    try:
        return decode(AccessList, path.read_bytes())
    except FileNotFoundError:
        return None
    except ValidationError:
        path.replace(path.with_suffix(".refused"))
        structlog.get_logger().error("access list refused", file=str(path))
        return None
