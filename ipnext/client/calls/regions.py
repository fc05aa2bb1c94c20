"""Calls about the fleet and its regions: replicas, drains, credentials of gateways."""

from collections.abc import Callable

import httpx

from ipnext.client.connection import Connection
from ipnext.client.credential import GatewayCredential
from ipnext.client.lists import Listing, params_of
from ipnext.client.polling import glance, poll
from ipnext.errors import DeadlineExceeded, Unavailable
from ipnext.model.api.resources import FleetView, RegionView
from ipnext.model.deployment.replica import Replica
from ipnext.model.fleet import FleetManifest, FleetSpec
from ipnext.model.lifecycle.regions.drain import DrainRequest, DrainState, DrainView, ReturnRequest


class RegionCalls(Connection):
    """The fleet, its regions and their drains."""

    def put_fleet(
        self, fleet: FleetManifest | FleetSpec, *, expected_version: int | None = None, dry_run: bool = False
    ) -> FleetView:
        """Create or replace the fleet."""
        if isinstance(fleet, FleetSpec):
            fleet = FleetManifest(api_version="ipnext/v1", kind="Fleet", spec=fleet)
        params = params_of(expectedVersion=expected_version, dryRun=dry_run)
        return self._put("/v1/fleet", fleet, FleetView, params=params)

    def fleet(self) -> FleetView:
        """Return the fleet as applied."""
        return self._get("/v1/fleet", FleetView)

    def regions(self, *, limit: int | None = None) -> Listing[RegionView]:
        """List regions with supply, counts of replicas and requests, and the replicas that do not answer."""
        return self._list("/v1/regions", RegionView, limit)

    def replicas(self, region: str, *, model: str | None = None, limit: int | None = None) -> Listing[Replica]:
        """List the replicas that a region reports, by id. NotFound; Unavailable if the region does not answer."""
        return self._list(f"/v1/regions/{region}/replicas", Replica, limit, **params_of(model=model))

    def drain(self, region: str, *, disaster: bool = False, force: bool = False, reason: str = "") -> DrainView:
        """Take a region out of service; `disaster`: it is lost. Conflict if no other region would remain.

        If a drain is under way, that one is returned. `wait_drain` waits for its end, `wait_routed` until its traffic
        is rerouted.
        """
        body = DrainRequest(disaster=disaster, force=force, reason=reason)
        return self._call("POST", f"/v1/regions/{region}/drain", DrainView, body=body)

    def undrain(self, region: str, *, reason: str = "") -> DrainView:
        """Bring a region back into service. NotFound if it is not drained."""
        return self._call("POST", f"/v1/regions/{region}/return", DrainView, body=ReturnRequest(reason=reason))

    def drain_status(self, region: str) -> DrainView:
        """Return the newest drain of a region. NotFound before the first."""
        return self._get(f"/v1/regions/{region}/drain", DrainView)

    def drains(self, region: str | None = None, *, limit: int | None = 20) -> Listing[DrainView]:
        """List the drains of a region, or of all, newest first, those that are over included."""
        return self._list("/v1/drains", DrainView, limit, **params_of(region=region))

    def wait_drain(
        self, region: str, timeout_seconds: float = 600.0, on_update: Callable[[DrainView], None] | None = None
    ) -> DrainView:
        """Wait until a region is drained, or back in service. Unavailable if the drain is refused; DeadlineExceeded."""
        settled = (DrainState.DRAINED, DrainState.RETURNED)
        return self._wait_region(region, settled, timeout_seconds, on_update)

    def wait_routed(self, region: str, timeout_seconds: float = 600.0) -> DrainView:
        """Wait until the traffic of a lost region is rerouted.

        Unavailable if the drain is refused; DeadlineExceeded.
        """
        settled = (DrainState.DRAINING, DrainState.DRAINED, DrainState.RETURNED)
        return self._wait_region(region, settled, timeout_seconds, None)

    def _wait_region(
        self,
        region: str,
        settled: tuple[DrainState, ...],
        timeout_seconds: float,
        on_update: Callable[[DrainView], None] | None,
    ) -> DrainView:
        last: DrainView | None = None
        for _ in poll(timeout_seconds):
            found = glance(lambda: self.drain_status(region))
            if found is not None and found != last and on_update is not None:
                on_update(found)
            last = found or last
            if last is not None and last.state is DrainState.REFUSED:
                msg = f"the drain of {region} is refused: {last.cause.value}: {last.message}"
                raise Unavailable(msg)
            if last is not None and last.state in settled:
                return last
        where = "unknown" if last is None else last.state.value
        msg = f"region {region} is {where} after {timeout_seconds:g} s; it goes on without you"
        raise DeadlineExceeded(msg)

    def gateway_auth(self, region: RegionView) -> httpx.Auth:
        """Return the credential for a region's gateway.

        It is that of the API, if the gateway requires one and the operator named its address.
        """
        return GatewayCredential(self._credential, region)
