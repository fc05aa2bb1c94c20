"""The file that names every region's gateway: `{"region": "http://host:port"}`."""

import json
from collections.abc import Mapping
from pathlib import Path

import structlog
from pydantic import TypeAdapter, ValidationError


class PeersFile:
    """Gateways by region, read again when the file changes. A missing file means that there is no other region."""

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self._content: bytes | None = None
        self._gateways: Mapping[str, str] = {}
        self.refresh()

    @property
    def gateways(self) -> Mapping[str, str]:
        """Region -> gateway URL, as last read."""
        return self._gateways

    def refresh(self) -> bool:
        """Read the file; return whether the gateways changed. An invalid file changes nothing."""
        content = self._read()
        if content is None or content == self._content:
            return False
        self._content = content
        try:
            gateways = TypeAdapter(dict[str, str]).validate_python(json.loads(content))
        except (ValueError, ValidationError) as error:
            structlog.get_logger().error("peers file refused", file=str(self._path), reason=str(error))
            return False
        changed = gateways != self._gateways
        self._gateways = gateways
        return changed

    def _read(self) -> bytes | None:
        try:
            return self._path.read_bytes() if self._path else None
        except FileNotFoundError:
            return None
