"""Checks of a platform's needs, item by item, with the remedy for a missing one. Reads only."""

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from contextlib import closing, suppress
from typing import Literal

from ipnext import names
from ipnext.artifacts.stores.file_store import FileArtifactStore
from ipnext.artifacts.stores.locations import open_store
from ipnext.errors import ArtifactMissing, IPnextError
from ipnext.infra.local_agents import LocalProcessInfrastructure
from ipnext.model.lifecycle.workflow_namespace import WorkflowNamespace
from ipnext.model.value import Value
from ipnext.platform.access.settings import REMEDY, read_access_settings
from ipnext.platform.builds import Build, builds
from ipnext.platform.namespace import attributes_of, retention_of
from ipnext.platform.polling import POLLED, pollers
from ipnext.platform.schedules import FoundSchedule, PlatformSchedule, describe_interval, find_schedule, schedules_of
from ipnext.settings import PlatformSettings
from ipnext.store.store import Store
from ipnext.temporal import Connection, connect, namespace_of

SETUP = "run `ipnext platform setup`"
ACCESS = "access settings"
AGENT_SECONDS = 3.0
NO_BLOB = "0" * 64
"""Digest of a blob that no store has."""


class Item(Value):
    """One checked item."""

    item: str
    state: Literal["ok", "missing", "wrong"]
    """wrong: it exists in a wrong state, or it does not answer."""
    detail: str = ""
    remedy: str = ""
    """Remedy for an operator."""


async def check(settings: PlatformSettings) -> tuple[Item, ...]:
    """Check everything. A service that does not answer is an item, not an error."""
    local = [
        *await asyncio.to_thread(_database, settings),
        *await asyncio.to_thread(_access_settings, settings),
        await asyncio.to_thread(_artifacts, settings),
        *await asyncio.to_thread(_agents, settings),
    ]
    try:
        client = await connect()
    except IPnextError as error:
        remedy = "start Temporal, or correct TEMPORAL_ADDRESS, TEMPORAL_NAMESPACE and the TLS settings of temporal.toml"
        return (Item(item="temporal", state="wrong", detail=error.message, remedy=remedy), *local)
    at = client.service_client.config.target_host
    found = [Item(item="temporal", state="ok", detail=at), *await _run_look("namespace", _namespace, client)]
    if found[-1].state != "missing":
        for item, look in (
            ("search attributes", _attributes),
            ("schedules", _schedules_of(settings)),
            ("workers", _workers),
            ("database owner", _owner_of(settings)),
        ):
            found += await _run_look(item, look, client)
    return (*found, *local)


Look = Callable[[Connection], Awaitable[Sequence[Item]]]


async def _run_look(item: str, look: Look, client: Connection) -> Sequence[Item]:
    try:
        return await look(client)
    except IPnextError as error:
        return (
            Item(item=item, state="wrong", detail=error.message, remedy="look at Temporal's own log, then check again"),
        )


async def _namespace(client: Connection) -> Sequence[Item]:
    retention = await retention_of(client)
    if retention is None:
        return (Item(item="namespace", state="missing", detail=client.namespace, remedy=SETUP),)
    days = retention.total_seconds() / 86_400
    return (Item(item="namespace", state="ok", detail=f"{client.namespace}, keeps ended runs for {days:g} days"),)


async def _attributes(client: Connection) -> Sequence[Item]:
    found = await attributes_of(client)
    return [_attribute(name, kind, name in found.missing, found.wrong.get(name)) for name, kind in _list_wanted()]


def _list_wanted() -> Iterable[tuple[str, str]]:
    return names.SEARCH_ATTRIBUTES.items()


def _attribute(name: str, kind: str, missing: bool, wrong: str | None) -> Item:
    item = f"search attribute {name}"
    if missing:
        return Item(item=item, state="missing", detail=kind, remedy=SETUP)
    if wrong is not None:
        remedy = "remove it with `temporal operator search-attribute remove`, then " + SETUP
        return Item(item=item, state="wrong", detail=f"{wrong} in place of {kind}", remedy=remedy)
    return Item(item=item, state="ok", detail=kind)


def _schedules_of(settings: PlatformSettings) -> Look:
    async def look(client: Connection) -> Sequence[Item]:
        return [_schedule(each, await find_schedule(client, each.name)) for each in schedules_of(settings)]

    return look


def _schedule(wanted: PlatformSchedule, found: FoundSchedule | None) -> Item:
    item = f"schedule {wanted.name}"
    if found is None:
        return Item(item=item, state="missing", remedy=f"{SETUP}, or wait for a worker, which creates it")
    detail = " and ".join(map(describe_interval, found.intervals)) or "by calendar"
    if found.intervals != (wanted.every,):
        detail += f", changed by hand: {describe_interval(wanted.every)} by the settings"
    if not found.paused:
        return Item(item=item, state="ok", detail=detail)
    if not wanted.keeps:
        return Item(item=item, state="ok", detail=f"{detail}, paused")
    remedy = f"run `temporal schedule toggle --unpause --schedule-id {wanted.name}`"
    return Item(
        item=item,
        state="wrong",
        detail=f"{detail}, paused: nothing starts workflow {wanted.keeps} again",
        remedy=remedy,
    )


async def _workers(client: Connection) -> Sequence[Item]:
    """Check that the builds which get runs are polled for: Temporal sends a task to workers of its build only."""
    found = await builds(client)
    polled = {str(each): [poller.build_id for poller in await pollers(client, each)] for each in POLLED}
    current = next((build.build_id for build in found if build.state == "current"), None)
    return (
        *(_queue(queue, builds_of, current) for queue, builds_of in polled.items()),
        _current(found, current, polled),
        *(_used_build(build, polled) for build in found if _has_runs(build)),
    )


def _has_runs(build: Build) -> bool:
    """Return whether a build that is not the current one has pinned runs, or gets new ones."""
    return build.ramp_percent > 0 or (build.state == "draining" and build.open_runs > 0)


Polled = Mapping[str, Sequence[str | None]]
"""For each task queue, the builds of the workers that poll it."""


def _queue(item: str, builds_of: Sequence[str | None], current: str | None) -> Item:
    workers = builds_of.count(current)
    if workers:
        return Item(item=item, state="ok", detail=f"{workers} workers{_of_build(current)}")
    if not builds_of:
        remedy = f"start `python -m workflows.worker`{_of_build(current)}"
        return Item(item=item, state="missing", detail="no worker asks for work", remedy=remedy)
    detail = f"no worker{_of_build(current) or ' without a build id'} asks for work, and others get none of it"
    return Item(item=item, state="missing", detail=detail, remedy=_start_or_promote(current, builds_of))


def _current(found: Sequence[Build], current: str | None, polled: Polled) -> Item:
    item = "current build"
    lacking = _unpolled(current, polled)
    if not found:
        return Item(item=item, state="ok", detail="workers run without build ids")
    if lacking and current is None:
        known = ", ".join(build.build_id for build in found)
        detail = f"none of {known}, and no worker without a build id polls {lacking}"
        return Item(item=item, state="missing", detail=detail, remedy=_start_or_promote(None, _all_of(polled)))
    if lacking:
        detail = f"{current}, and no worker of it polls {lacking}"
        return Item(item=item, state="missing", detail=detail, remedy=_start_or_promote(current, _all_of(polled)))
    return Item(item=item, state="ok", detail=current or "workers without a build id")


def _used_build(build: Build, polled: Polled) -> Item:
    """Check a build, not the current one, for which `_has_runs`."""
    item = f"{build.state} build"
    share = f"{build.ramp_percent:g} % of new runs, " if build.state == "ramping" else ""
    detail = f"{build.build_id}, {share}{build.open_runs} open runs"
    if not (lacking := _unpolled(build.build_id, polled)):
        return Item(item=item, state="ok", detail=detail)
    remedy = f"start workers of build {build.build_id}"
    if build.state == "ramping":
        remedy += f", or end its share: `ipnext platform promote {build.build_id} --ramp 0`"
    return Item(item=item, state="missing", detail=f"{detail}, and no worker of it polls {lacking}", remedy=remedy)


def _unpolled(build_id: str | None, polled: Polled) -> str:
    return "; ".join(queue for queue, builds_of in polled.items() if build_id not in builds_of)


def _all_of(polled: Polled) -> Sequence[str | None]:
    return [build_id for builds_of in polled.values() for build_id in builds_of]


def _start_or_promote(current: str | None, polling: Iterable[str | None]) -> str:
    """Return the remedy for a current build without workers: to start them, or to promote another one that polls."""
    others = sorted({"--unversioned" if build_id is None else build_id for build_id in polling if build_id != current})
    start = f"start workers{_of_build(current) or ' without a build id'}"
    promotions = " or ".join(f"`ipnext platform promote {other}`" for other in others)
    return f"{start}, or run {promotions}" if others else start


def _of_build(build_id: str | None) -> str:
    return "" if build_id is None else f" of build {build_id}"


def _owner_of(settings: PlatformSettings) -> Look:
    async def look(client: Connection) -> Sequence[Item]:
        return await asyncio.to_thread(_owner, settings, (await namespace_of(client)).id)

    return look


def _owner(settings: PlatformSettings, namespace_id: str) -> Sequence[Item]:
    with closing(Store.open(settings.database_url)) as store:
        found = store.schema_range()
        if found is None or found.behind:
            return ()
        with store.read() as unit:
            owner = unit.belongs_to()
    return (_belonging(owner, namespace_id),)


def _belonging(owner: WorkflowNamespace | None, namespace_id: str) -> Item:
    if owner is None or owner.id == namespace_id:
        return Item(item="database owner", state="ok", detail="this namespace" if owner else "not claimed yet")
    remedy = "correct IPNEXT_DATABASE_URL or TEMPORAL_NAMESPACE; docs/store.md, One platform, one database"
    return Item(
        item="database owner", state="wrong", detail=f"namespace {owner.name} at {owner.address}", remedy=remedy
    )


def _database(settings: PlatformSettings) -> Sequence[Item]:
    try:
        with closing(Store.open(settings.database_url)) as store:
            found, name, absent = store.schema_range(), store.name, store.absent_file
    except IPnextError as error:
        return (Item(item="database", state="wrong", detail=error.message, remedy="correct IPNEXT_DATABASE_URL"),)
    if absent is not None:
        remedy = f"{SETUP}, which creates it, or correct IPNEXT_DATABASE_URL"
        return (Item(item="database", state="missing", detail=f"no file {absent}", remedy=remedy),)
    there = Item(item="database", state="ok", detail=name)
    if found is None or found.behind:
        state: Literal["missing", "wrong"] = "missing" if found is None else "wrong"
        detail = "no tables" if found is None else f"{found.version}, this build knows {found.own}"
        return (there, Item(item="database schema", state=state, detail=detail, remedy=SETUP))
    detail = f"{found.version}, for builds of {found.min_reader} or newer; this build knows {found.own}"
    if found.compatible:
        return (there, Item(item="database schema", state="ok", detail=detail))
    return (there, Item(item="database schema", state="wrong", detail=detail, remedy="run a newer build"))


def _access_settings(settings: PlatformSettings) -> Sequence[Item]:
    """Compare policies and identity provider of this environment, if it has any, with those that gateways go by."""
    try:
        mine = read_access_settings(settings)
        with closing(Store.open(settings.database_url)) as store:
            found = store.schema_range()
            if found is None or found.behind:
                return ()
            with store.read() as unit:
                state = unit.access_list_state()
    except (IPnextError, OSError) as error:
        return (
            Item(item=ACCESS, state="wrong", detail=str(error), remedy="correct the policies' file, or the database"),
        )
    if state.version is None:
        return (Item(item=ACCESS, state="ok", detail="no API has put any in force yet"),)
    detail = f"version {state.version} is in force"
    has_any = mine.policies or mine.issuer is not None
    if has_any and (names := mine.differing(state)):
        detail += (
            f", and {', '.join(names)} of this environment, at version {mine.version}, "
            f"{'differs' if len(names) == 1 else 'differ'}"
        )
        return (Item(item=ACCESS, state="wrong", detail=detail, remedy=REMEDY),)
    return (Item(item=ACCESS, state="ok", detail=detail),)


def _artifacts(settings: PlatformSettings) -> Item:
    try:
        store = open_store(settings.artifacts_uri, endpoint_url=settings.s3_endpoint_url)
        if isinstance(store, FileArtifactStore) and not store.root.is_dir():
            remedy = "create the directory, mount the shared file system there, or correct IPNEXT_ARTIFACTS_URI"
            return Item(item="artifact store", state="missing", detail=f"no directory {store.root}", remedy=remedy)
        with suppress(ArtifactMissing):
            store.open_blob(NO_BLOB).close()  # report a missing or forbidden bucket now
    except (IPnextError, OSError) as error:
        remedy = "correct IPNEXT_ARTIFACTS_URI, IPNEXT_S3_ENDPOINT_URL or the credentials"
        return Item(item="artifact store", state="wrong", detail=str(error), remedy=remedy)
    return Item(item="artifact store", state="ok", detail=settings.artifacts_uri)


def _agents(settings: PlatformSettings) -> Sequence[Item]:
    if not settings.agents:
        remedy = "set IPNEXT_AGENTS: region -> URL of its agent, as JSON"
        return (Item(item="agents", state="missing", detail="no region has an agent", remedy=remedy),)
    agents = LocalProcessInfrastructure(settings.agents, timeout_seconds=AGENT_SECONDS, components=settings)
    with agents as infrastructure:
        found = [_agent(infrastructure, region, url) for region, url in sorted(settings.agents.items())]
    return [*found, *map(_without_agent, sorted(_fleet_regions(settings) - settings.agents.keys()))]


def _fleet_regions(settings: PlatformSettings) -> frozenset[str]:
    """Return the regions of the applied fleet; none if the database cannot be read, which is an item of its own."""
    try:
        with closing(Store.open(settings.database_url)) as store:
            found = store.schema_range()
            if found is None or found.behind or not found.compatible:
                return frozenset()
            with store.read() as unit:
                return frozenset(unit.region_names())
    except IPnextError:
        return frozenset()


def _without_agent(region: str) -> Item:
    remedy = f"add it to IPNEXT_AGENTS, or take it out of use: `ipnext drain {region} --disaster`, then apply the fleet"
    detail = "the fleet has this region, so plans use its supply, and changes wait for it"
    return Item(item=f"agent {region}", state="missing", detail=detail, remedy=f"{remedy} without it")


def _agent(infrastructure: LocalProcessInfrastructure, region: str, url: str) -> Item:
    try:
        infrastructure.observe(region, ())
    except IPnextError as error:
        remedy = f"start the agent of {region}, or correct IPNEXT_AGENTS"
        return Item(item=f"agent {region}", state="wrong", detail=error.message, remedy=remedy)
    return Item(item=f"agent {region}", state="ok", detail=url)
