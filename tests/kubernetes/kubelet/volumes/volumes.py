"""The volumes of a pod, as directories of the node."""

import shutil
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from tests.kubernetes.kubelet.api import Gone, NodeApi
from tests.kubernetes.kubelet.environment import ConfigMissing, field_of, resource_of
from tests.kubernetes.kubelet.volumes.atomic_files import Content, publish
from tests.kubernetes.server.accounts import ACCOUNT, ROOT_AUTHORITY
from tests.kubernetes.server.errors import Json

MODE, TOKEN_SECONDS = 0o644, 3600
KINDS = {"configMap": "ConfigMap", "secret": "Secret"}
PROJECTED = ("configMap", "secret", "downwardAPI", "serviceAccountToken")
MEMORY = Path("/dev/shm")
LIFE_BEFORE_RENEWAL = 0.8


class MountFailed(Exception):
    """A volume cannot be mounted yet."""


@dataclass
class Volumes:
    """All volumes of one pod, below one directory."""

    api: NodeApi
    pod: Json
    fields: Mapping[str, str]
    directory: Path
    token_seconds: float | None = None
    """After so many seconds a token is renewed; None: after the usual part of its life."""
    _tokens: dict[str, tuple[str, float]] = field(default_factory=dict)
    _in_memory: list[Path] = field(default_factory=list)

    async def mount(self) -> None:
        """Make each volume. MountFailed if an object is missing."""
        for volume in self.pod["spec"].get("volumes") or ():
            try:
                await self._mount(volume)
            except (Gone, ConfigMissing, OSError) as error:
                msg = f'MountVolume.SetUp failed for volume "{volume["name"]}" : {error}'
                raise MountFailed(msg) from error

    async def refresh(self) -> None:
        """Write what has changed in objects and the pod; what is gone stays as it was."""
        for volume in self.pod["spec"].get("volumes") or ():
            if not {"emptyDir", "hostPath"} & set(volume):
                try:
                    await self._mount(volume)
                except (Gone, ConfigMissing):
                    continue

    def remove(self) -> None:
        """Remove what is not below the directory."""
        for each in self._in_memory:
            shutil.rmtree(each, ignore_errors=True)

    async def _mount(self, volume: Json) -> None:
        place = self.directory / volume["name"]
        if "emptyDir" in volume:
            self._make_empty(place, (volume["emptyDir"] or {}).get("medium", ""))
        elif "hostPath" in volume:
            _link_host(place, volume["hostPath"])
        elif "projected" in volume:
            publish(place, await self._projected(volume["projected"]))
        else:
            kind = next((each for each in PROJECTED if each in volume), None)
            if kind is None:
                msg = "the node double has no volumes of this kind"
                raise ConfigMissing(msg)
            publish(place, await self._files(kind, volume[kind], volume[kind].get("defaultMode", MODE)))

    def _make_empty(self, place: Path, medium: str) -> None:
        if place.exists():
            return
        place.parent.mkdir(parents=True, exist_ok=True)
        if medium == "Memory" and MEMORY.is_dir():
            real = MEMORY / f"{self.directory.parent.parent.name}-{self.directory.parent.name}-{place.name}"
            real.mkdir()
            self._in_memory.append(real)
            place.symlink_to(real)
        else:
            place.mkdir()
        place.chmod(0o777)

    async def _projected(self, volume: Json) -> dict[str, Content]:
        mode = volume.get("defaultMode", MODE)
        found: dict[str, Content] = {}
        for source in volume.get("sources") or ():
            for kind in source:
                found |= await self._files(kind, source[kind], mode)
        return found

    async def _files(self, kind: str, source: Json, mode: int) -> dict[str, Content]:
        if kind in KINDS:
            return await self._entries(kind, source, mode)
        if kind == "downwardAPI":
            items = source.get("items") or ()
            return {each["path"]: self._field(each, mode) for each in items}
        if kind == "serviceAccountToken":
            return {source["path"]: Content(await self._account_token(source), mode)}
        msg = f"the node double projects no {kind}"
        raise ConfigMissing(msg)

    def _field(self, item: Json, mode: int) -> Content:
        if "resourceFieldRef" in item:
            text = resource_of(item["resourceFieldRef"], self.pod)
        else:
            text = field_of(item["fieldRef"]["fieldPath"], self.fields)
        return Content(text.encode(), item.get("mode", mode))

    async def _entries(self, kind: str, source: Json, mode: int) -> dict[str, Content]:
        name, is_optional = source.get("secretName") or source.get("name", ""), source.get("optional", False)
        contents = await self._contents(KINDS[kind], name, is_optional=is_optional)
        items = source.get("items")
        if items is None:
            return {key: Content(each, mode) for key, each in contents.items()}
        missing = [each["key"] for each in items if each["key"] not in contents]
        if missing and not is_optional:
            msg = f"references non-existent {kind.lower()} key: {missing[0]}"
            raise ConfigMissing(msg)
        chosen = [each for each in items if each["key"] in contents]
        return {each["path"]: Content(contents[each["key"]], each.get("mode", mode)) for each in chosen}

    async def _contents(self, kind: str, name: str, *, is_optional: bool) -> dict[str, bytes]:
        namespace = self.pod["metadata"]["namespace"]
        try:
            if name == ROOT_AUTHORITY:
                return await self.api.root_authority(namespace)
            return await self.api.contents(namespace, kind, name)
        except Gone:
            if is_optional:
                return {}
            raise

    async def _account_token(self, source: Json) -> bytes:
        """Return a token of the pod's service account, which is kept for a part of its life."""
        path, now = source["path"], time.monotonic()
        token, until = self._tokens.get(path, ("", 0.0))
        if now >= until:
            account = self.pod["spec"].get("serviceAccountName") or ACCOUNT
            seconds = source.get("expirationSeconds", TOKEN_SECONDS)
            token = await self.api.account_token(self.pod, account, seconds, source.get("audience"))
            life = LIFE_BEFORE_RENEWAL * seconds if self.token_seconds is None else self.token_seconds
            self._tokens[path] = token, now + life
        return token.encode()


def _link_host(place: Path, source: Json) -> None:
    """Let a volume be a place of the node. ConfigMissing if it is not of the type that is asked for."""
    host, kind = Path(source["path"]), source.get("type") or ""
    if kind == "DirectoryOrCreate":
        host.mkdir(parents=True, exist_ok=True)
    elif kind == "FileOrCreate":
        host.touch()
    tests = {"Directory": host.is_dir, "File": host.is_file, "Socket": host.is_socket, "": host.exists}
    if kind in tests and not tests[kind]():
        msg = f"hostPath type check failed: {host} is not a {kind.lower() or 'place of the node'}"
        raise ConfigMissing(msg)
    if not place.is_symlink():
        place.parent.mkdir(parents=True, exist_ok=True)
        place.symlink_to(host)
