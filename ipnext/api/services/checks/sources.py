"""Checks of a manifest's sources when it is applied: known kinds, and what its owner may have read."""

from collections.abc import Sequence

from ipnext.errors import InvalidInput
from ipnext.model.manifest.manifest import ModelManifest
from ipnext.model.registry.sources import Reach
from ipnext.plugins import contain_faults
from ipnext.settings import PlatformSettings
from ipnext.sources.access import ReadAccess
from ipnext.sources.kinds import SourceKinds
from ipnext.store.repository import Repository
from ipnext.store.sources.sources import WatchedSource


def watch_sources(manifest: ModelManifest, kinds: SourceKinds, reach: Reach) -> tuple[WatchedSource, ...]:
    """Return the sources of a manifest with the systems of their streams.

    Raises InvalidInput for an unknown kind, or settings that a plug-in refuses.
    """
    parts = [part.name for part in manifest.spec.parts]
    found = []
    for index, spec in enumerate(manifest.spec.sources):
        try:
            with contain_faults(spec.kind):
                upstream = manifest.name if spec.push is not None else kinds.get(spec.kind).upstream(spec.stream)
        except InvalidInput as error:
            raise _at(index, error) from error
        own = Reach.OWNER if spec.push is not None else reach  # who pushes later need not be who applies now
        found.append(WatchedSource(spec=spec, part=spec.part or parts[0], upstream=upstream, reach=own))
    return tuple(found)


def check_readable(
    unit: Repository,
    manifest: ModelManifest,
    sources: Sequence[WatchedSource],
    kinds: SourceKinds,
    settings: PlatformSettings,
) -> None:
    """Check that each source may be read, by what its owner and the applying principal may have read.

    A source with the same settings keeps what an administrator granted it. Raises InvalidInput or PathNotAllowed.
    """
    name, owner = manifest.name, manifest.metadata.owner
    record = unit.find_model(name)
    same_owner = record is not None and not record.retired and record.manifest.metadata.owner == owner
    granted = {(each.name, each.stream): each.reach for each in unit.sources(name)} if same_owner else {}
    for index, source in enumerate(sources):
        reach = max(source.reach, granted.get((source.spec.name, source.stream), Reach.OWNER))
        try:
            access = ReadAccess.of(settings, owner, reach)
            with contain_faults(source.spec.kind):
                kinds.get(source.spec.kind).check(source.spec.stream, access)
        except InvalidInput as error:
            raise _at(index, error) from error


def _at(index: int, error: InvalidInput) -> InvalidInput:
    """Return the error with the source's place in the manifest."""
    place = f"spec.sources.{index}"
    field = f"{place}.{error.field}" if error.field else place
    found = type(error)(f"{place}: {error.message}", field=field, value=error.value, allowed=error.allowed)
    public = getattr(error, "public_message", None)
    if public is not None:
        found.public_message = f"{place}: {public}"  # type: ignore[attr-defined]
    return found
