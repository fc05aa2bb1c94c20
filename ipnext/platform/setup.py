"""Creation of a platform's dependencies: only missing ones, so that an operator's changes are not overwritten."""

import asyncio
import time
from collections.abc import Sequence
from contextlib import closing
from datetime import timedelta

import structlog

from ipnext.errors import EngineRefused, Unavailable
from ipnext.platform.namespace import (
    DEFAULT_RETENTION,
    Attributes,
    attributes_of,
    create_namespace,
    register_attributes,
    retention_of,
)
from ipnext.platform.schedules import create_missing, describe_interval, reset_schedules, schedules_of
from ipnext.settings import PlatformSettings
from ipnext.store.store import Store
from ipnext.temporal import Connection, connect

APPEAR_SECONDS = 60.0
"""Time in which every server of a cluster learns of a new namespace or search attribute: the age of its cache."""

LOOK_SECONDS = 0.5


async def setup(
    settings: PlatformSettings, *, retention: timedelta = DEFAULT_RETENTION, with_reset: bool = False
) -> Sequence[str]:
    """Create missing namespace, search attributes, schedules and tables; return the actions as text.

    `with_reset` resets existing schedules to the settings. Raises Conflict (a schema beyond this build), EngineRefused,
    NotFound and Unavailable.
    """
    client = await connect()
    done: list[str] = []
    if await retention_of(client) is None:
        await create_namespace(client, retention=retention)
        done.append(f"namespace {client.namespace} created")
    missing = (await _read_attributes(client)).missing
    if missing:
        await register_attributes(client, missing)
        done += [f"search attribute {name} ({kind}) registered" for name, kind in missing.items()]
        await _until_registered(client)
    await asyncio.to_thread(_migrate, settings)
    done.append("database migrated")
    wanted = schedules_of(settings)
    created = await create_missing(client, wanted)
    existing = [each for each in wanted if each not in created]
    if with_reset:
        await reset_schedules(client, existing)
    for each in wanted:
        if each in created or with_reset:
            what = "created" if each in created else "reset"
            done.append(f"schedule {each.name} {what}: {describe_interval(each.every)}")
    return done


async def warn_of_missing(client: Connection) -> None:
    """Log the search attributes that the namespace lacks.

    Nothing is refused: changes wait until they are registered.
    """
    log = structlog.get_logger()
    try:
        found = await attributes_of(client)
    except EngineRefused as error:
        log.info("search_attributes_not_checked", error=error.message)
        return
    if found.missing or found.wrong:
        log.error(
            "search_attributes_missing",
            namespace=client.namespace,
            missing=sorted(found.missing),
            wrong=dict(found.wrong),
            hint="run `ipnext platform setup`; changes are recorded and submitted once they are registered",
        )


async def _read_attributes(client: Connection) -> Attributes:
    """Return the attributes; a new namespace may be unknown for some seconds. Raises EngineRefused or Unavailable."""
    deadline = time.monotonic() + APPEAR_SECONDS
    while True:
        try:
            return await attributes_of(client)
        except (EngineRefused, Unavailable):
            if time.monotonic() > deadline:
                raise
        await asyncio.sleep(LOOK_SECONDS)


async def _until_registered(client: Connection) -> None:
    deadline = time.monotonic() + APPEAR_SECONDS
    while missing := (await attributes_of(client)).missing:
        if time.monotonic() > deadline:
            msg = (
                f"{client.namespace} does not show its new search attributes after {APPEAR_SECONDS:g} s: "
                f"{', '.join(missing)}"
            )
            raise Unavailable(msg)
        await asyncio.sleep(LOOK_SECONDS)


def _migrate(settings: PlatformSettings) -> None:
    with closing(Store.open(settings.database_url)) as store:
        store.migrate()
