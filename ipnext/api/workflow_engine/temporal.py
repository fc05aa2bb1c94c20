"""The real workflow engine: Temporal. Connects with its first call, so that the API starts and reads without it."""

import asyncio
import time
from contextlib import suppress
from typing import Final

import structlog

from ipnext import names, temporal
from ipnext.errors import EngineRefused, InvalidInput
from ipnext.model.lifecycle.changes.change import Change
from ipnext.model.lifecycle.changes.controls import ControlAction, ControlAnswer, ControlAsked
from ipnext.model.lifecycle.changes.entity import ChangeAccepted
from ipnext.model.lifecycle.replans.moves import MoverAsked, ReplanProgress
from ipnext.model.lifecycle.workflow_namespace import WorkflowNamespace
from ipnext.platform.setup import warn_of_missing
from ipnext.temporal_access import Stamp, TemporalSettings, read_access, stamp_of, temporal_settings
from ipnext.timing import Timing

LOOK_SECONDS: Final = 1.0
"""Interval of the checks of the files with the credentials for Temporal."""


class TemporalLifecycle:
    """A Lifecycle over `ipnext.temporal`. temporal.toml or TEMPORAL_* name the server."""

    def __init__(self, *, ui_url: str, timing: Timing | None = None, access: TemporalSettings | None = None) -> None:
        self._ui_url = ui_url
        self._access = access or temporal_settings()
        self._stamp: Stamp = ()
        self._looked_at = 0.0
        self._timing = timing
        self._client: temporal.Connection | None = None
        self._connecting = asyncio.Lock()
        self._warned = False

    async def namespace(self) -> WorkflowNamespace:
        """See the port."""
        client = await self._connect()
        found = await temporal.namespace_of(client)
        if not self._warned:
            await warn_of_missing(client)
            self._warned = True
        return found

    async def submit(self, change: Change) -> ChangeAccepted:
        """See the port."""
        return await temporal.submit_change(await self._connect(), change)

    async def control(
        self,
        model: str,
        action: ControlAction,
        asked: ControlAsked,
        *,
        change_id: str | None = None,
        update_id: str,
    ) -> ControlAnswer:
        """See the port."""
        client = await self._connect()
        return await temporal.control(client, model, action, asked, change_id=change_id, update_id=update_id)

    async def runs(self, workflow_id: str) -> bool:
        """See the port."""
        return await temporal.is_open(await self._connect(), workflow_id)

    async def begin_entity(self, model: str) -> None:
        """See the port."""
        await temporal.begin_entity(await self._connect(), model)

    async def look_again(self, model: str) -> None:
        """See the port."""
        await temporal.look_again(await self._connect(), model)

    async def wake_replan(self) -> None:
        """See the port."""
        await temporal.wake_replan(await self._connect())

    async def signal_freeze_change(self, change: Change) -> None:
        """See the port."""
        await temporal.signal_freeze_change(await self._connect(), change)

    async def cancel_replan(self, asked: MoverAsked, *, update_id: str) -> ReplanProgress:
        """See the port."""
        return await temporal.cancel_replan(await self._connect(), asked, update_id=update_id)

    async def signal_steering(self) -> None:
        """See the port."""
        await temporal.signal_steering(await self._connect())

    async def signal_drain(self, region: str) -> None:
        """See the port."""
        await temporal.signal_drain(await self._connect(), region)

    async def wake_watch(self, kind: str, upstream: str) -> None:
        """See the port."""
        await temporal.wake_watch(await self._connect(), kind, upstream)

    async def reachable(self) -> bool:
        """See the port."""
        return await temporal.reachable(await self._connect())

    def run_url(self, workflow_id: str, run_id: str) -> str:
        """See the port."""
        namespace = names.NAMESPACE if self._client is None else self._client.namespace
        return temporal.ui_link(self._ui_url, namespace, workflow_id, run_id)

    async def _connect(self) -> temporal.Connection:
        async with self._connecting:
            if self._client is not None and not self._has_new_credentials():
                return self._client
            try:
                access = read_access(self._access)
            except InvalidInput as error:
                return self._former_client(error)
            self._client = await temporal.connect(lazy=True, timing=self._timing, access=access)
            self._stamp = access.stamp
            return self._client

    def _former_client(self, error: InvalidInput) -> temporal.Connection:
        """Return the client of the former credentials. EngineRefused without one: a caller is not at fault."""
        if self._client is None:
            msg = f"Temporal can't be reached: {error.message}"
            raise EngineRefused(msg) from error
        structlog.get_logger().warning("temporal_credentials_not_in_use", error=error.message)
        return self._client

    def _has_new_credentials(self) -> bool:
        """Check at most once a second; a momentarily missing file changes nothing."""
        if time.monotonic() - self._looked_at < LOOK_SECONDS:
            return False
        self._looked_at = time.monotonic()
        with suppress(InvalidInput):
            return stamp_of(self._access) != self._stamp
        return False
