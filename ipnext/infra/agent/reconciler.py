"""Reconciliation of one region: hosts, router and Envoy, with each change in a safe order."""

import asyncio
import time
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping
from contextlib import suppress

import structlog

from ipnext.errors import InvalidInput, Unavailable
from ipnext.infra.agent.desired_state import DesiredState, longest_drain
from ipnext.infra.agent.peers import PeersFile
from ipnext.infra.agent.prefetch import PrefetchQueue
from ipnext.infra.agent.replica_timings import ReplicaTimings
from ipnext.infra.agent.shared_write import SharedWrite
from ipnext.infra.agent.snapshot_cache import SnapshotCache, remove
from ipnext.infra.assignment import assign_processes, host_holds, replica_sets
from ipnext.infra.context import RegionContext
from ipnext.infra.control import Control
from ipnext.infra.envoy.config import Gateway
from ipnext.infra.gateway.process import EnvoyProcess
from ipnext.infra.generation_shares import OpenAIChoices, may_generate
from ipnext.infra.host.limit import HostRoom
from ipnext.infra.host.log_retention import LogLimits, LogRetention
from ipnext.infra.host.region_parts import RegionParts
from ipnext.infra.host.replica import HostReplica
from ipnext.infra.host.runtime import Adopted, HostIdentity, HostRuntime
from ipnext.infra.route_rules import check_destinations, check_revision
from ipnext.infra.router import table as router_table
from ipnext.infra.router.access_delivery import AccessDelivery
from ipnext.infra.router.access_file import AccessFile
from ipnext.infra.router.delayed_removal import DelayedRemoval
from ipnext.infra.router.process import RouterProcess
from ipnext.infra.state_token import with_token
from ipnext.model.access.predictions import AccessList, AccessRevision, KeyUseReport, PredictionAccess
from ipnext.model.deployment.applied_state import AppliedState
from ipnext.model.deployment.deployment import Deployment, DeploymentKey
from ipnext.model.deployment.logs import LogQuery, ReplicaLog
from ipnext.model.deployment.region_state import RegionState
from ipnext.model.deployment.route_table import RouteTable
from ipnext.model.deployment.served_generation import ServedGeneration
from ipnext.model.deployment.traffic import GenerationTraffic
from ipnext.model.gate.live import RoundTimes, TimingRound
from ipnext.model.gate.shadow import ShadowComparison
from ipnext.revision import Revision

ADOPT_POLL_SECONDS = 0.01


class Region:
    """Reconciles the observed with the desired state. Call all methods in one event loop, in the main thread."""

    def __init__(self, site: RegionContext, peers: PeersFile, hosts: HostRuntime) -> None:
        self._site = site
        self._hosts = hosts
        self._peers = peers
        self._wanted = DesiredState(site.directory / "wanted")
        self._access = AccessFile(site.directory / "wanted" / "access.json", site.access_file, region=site.region)
        control = Control(site.session, probe_seconds=site.settings.probe_seconds)
        self._changes = Revision()
        self._router = RouterProcess(
            site,
            control,
            on_change=self._router_changed,
            moved=self._router_moved,
            followed=self._changes.rise,
        )
        self._delivery = AccessDelivery(self._access, self._router, stale_seconds=site.settings.access_stale_seconds)
        self._envoy = EnvoyProcess(site)
        self._choices = OpenAIChoices(site.region)
        self._tables = SharedWrite(self._publish_table, self._router.confirm)
        self._gateway = SharedWrite(self._publish_gateway, self._envoy.confirm)
        self._replicas: dict[DeploymentKey, list[HostReplica]] = defaultdict(list)
        self._timings = ReplicaTimings(control, self._replicas)
        self._room = HostRoom(site.region, site.settings.max_hosts or hosts.most_hosts)
        self._lives: set[asyncio.Task[None]] = set()
        self._routes: dict[str, RouteTable] = dict(self._wanted.routes)
        self._served: dict[str, tuple[ServedGeneration, ...]] = {m: t.served for m, t in self._routes.items()}
        self._accesses: dict[str, PredictionAccess] = {m: t.access for m, t in self._routes.items()}
        """Access of each model by its last table: a model that is being removed stays as closed as it was."""
        self._route_locks: dict[str, asyncio.Lock] = defaultdict(asyncio.Lock)
        self._forgetting = DelayedRemoval(site.settings.settle_seconds, self._forget_later)
        self._prefetching = PrefetchQueue(site)
        self._cache = SnapshotCache(site.cache, keep_seconds=site.settings.cache_keep_seconds)
        self._logs = LogRetention(site.logs, LogLimits.of(site.settings))
        self._watch: asyncio.Task[None] | None = None
        self._resuming: asyncio.Task[None] | None = None
        self._publishing = True
        """Whether the router's table is written: not before adopted hosts have reported their snapshots."""
        self._gateway_follows = not self._envoy.adoptable
        """Whether Envoy's files are written: not before the router knows all generations that Envoy may send."""

    async def start(self) -> None:
        """Adopt the processes of a former agent, and start all others of the desired state.

        Returns once the adopted processes have reported their state; no process is sent anything before that.
        """
        remove(self._cache.scraps())
        await self._hosts.start()
        adopts = self._adopt()
        if not adopts:
            self._publish_table()
        if not self._envoy.adoptable:
            self._publish_gateway()
        self._router.start()
        self._envoy.start()
        while adopts and not self._knows_adopted:  # noqa: ASYNC110 - three kinds of processes say so, each in its own loop
            await asyncio.sleep(ADOPT_POLL_SECONDS)
        self._publishing = True
        for deployment in self._wanted.deployments.values():
            self._reconcile(deployment)
        for key in set(self._replicas) - set(self._wanted.deployments):
            self._remove(key)
        if adopts:
            self._resuming = asyncio.create_task(self._resume_routes(), name="resume routes")
        self._watch = asyncio.create_task(self._run_maintenance(), name="look around")

    def _adopt(self) -> bool:
        """Adopt running hosts; return whether anything runs that requests depend on."""
        hosts = self._hosts.find_adopted()
        if hosts or self._router.adopted or self._envoy.adoptable:
            self._publishing = False
            both = {
                m: router_table.with_both(served, self._served.get(m, ()))
                for m, served in self._router.served_generations.items()
            }
            self._served |= both
        for note, running in hosts.values():
            self._live_with(
                self._new_replica(
                    HostIdentity(key=note.key, number=note.number, engine=note.engine), adopted=(note, running)
                )
            )
        return not self._publishing

    @property
    def _knows_adopted(self) -> bool:
        return (
            self._router.is_known
            and self._envoy.is_known
            and all(replica.is_known for held in self._replicas.values() for replica in held)
        )

    async def _resume_routes(self) -> None:
        """Put the desired routes in force in the order of a change: a former agent may have died within one."""
        revision = self._publish_table()
        while True:
            with suppress(Unavailable):
                await self._router.confirm(revision)
                break
        self._gateway_follows = True
        with suppress(Unavailable, OSError):
            await self._envoy.confirm(self._publish_gateway())
        for model in tuple(self._served):
            async with self._route_locks[model]:
                table = self._routes.get(model)
                with suppress(Unavailable):
                    await self._forget(model, table.served if table else ())

    async def _wait_resumed(self) -> None:
        """Return once the desired routes are in force. Unavailable after `confirm_seconds`."""
        limit = self._site.settings.confirm_seconds
        if self._resuming is not None:
            await asyncio.wait([self._resuming], timeout=limit)
            if not self._resuming.done():
                msg = f"the agent of region {self._site.region!r} adopts what runs, for more than {limit} s; try again"
                raise Unavailable(msg)

    async def leave(self) -> None:
        """Stop this agent's own work. The processes that serve continue."""
        await self._stop_work()
        await self._hosts.stop()

    async def _stop_work(self) -> None:
        for task in (self._watch, self._resuming):
            if task:
                task.cancel()
        self._forgetting.stop()
        await self._prefetching.stop()

    async def stop(self, hurry: asyncio.Event) -> None:
        """Stop the gateway first, so that no request arrives and running ones finish; then router and hosts.

        It waits for the longest drain of the region's models, or for the time in the settings, and no longer once
        `hurry` is set.
        """
        await self._stop_work()
        told = self._site.settings.shutdown_drain_seconds
        await self._envoy.stop(self._longest_drain if told is None else told, hurry)
        for life in self._lives:
            life.cancel()
        hosts = [replica.end() for replicas in self._replicas.values() for replica in replicas]
        await asyncio.gather(self._router.stop(), *hosts)
        await self._hosts.stop()

    def prefetch(self, uris: Iterable[str]) -> None:
        """Fetch snapshots that a deployment will name soon, in the background."""
        if self._hosts.shares_disk:
            self._prefetching.begin(uris)

    async def apply(self, deployment: Deployment) -> None:
        """Make this the desired state of its replica set; it is reconciled in the background."""
        self._check_region("key.region", deployment.key.region)
        await self._forgetting.wait_settled(deployment.key.model)
        self._wanted.put_deployment(deployment)
        self._reconcile(deployment)

    async def delete(self, key: DeploymentKey) -> None:
        """Drain and end a replica set."""
        await self._forgetting.wait_settled(key.model)
        self._remove(key)

    def _remove(self, key: DeploymentKey) -> None:
        self._wanted.remove_deployment(key)
        self._hosts.keep_available(key, 0)
        for replica in self._replicas.get(key, ()):
            replica.leave()

    async def route(self, table: RouteTable) -> None:
        """Put a route table in force; return once router and Envoy have applied it.

        The router knows a generation before Envoy sends to it, and before it chooses it itself. It drops unneeded
        generations later: requests that Envoy sent just before may still be on the network, and until they have arrived
        no replica unloads anything either.
        """
        self._check_region("region", table.region)
        check_destinations(table, {self._site.region, *self._peers.gateways})
        await self._wait_resumed()
        async with self._route_locks[table.model]:
            check_revision(table, self._wanted.routes.get(table.model))
            await self._wanted.put_route(table)
            await self._serve(table.model, router_table.with_both(self._served.get(table.model, ()), table.served))
            former = self._routes.get(table.model)
            self._routes[table.model] = table
            await self._gateway.done()
            generates = may_generate(table) or (former is not None and may_generate(former))
            if generates or table.shadow != (former.shadow if former is not None else None):
                await self._tables.done()
            if self._served.get(table.model, ()) != table.served:
                self._forgetting.begin(table.model)

    async def unroute(self, model: str) -> None:
        """Remove a model from the gateway, then from the router."""
        await self._wait_resumed()
        async with self._route_locks[model]:
            self._wanted.remove_route(model)
            if self._routes.pop(model, None) or model in self._served:
                await asyncio.gather(self._gateway.done(), self._tables.done())
                await self._forget(model, ())

    @property
    def access_revision(self) -> AccessRevision:
        """The list that the router goes by."""
        return self._delivery.in_force

    async def put_access(self, access: AccessList) -> AccessRevision:
        """Take a list by which predictions are checked; return the one that the router goes by, within a second."""
        followed = await self._delivery.put(access, self._routed_models)
        with suppress(OSError):  # repeated soon
            self._publish_gateway()
        return followed

    async def key_uses(self) -> KeyUseReport:
        """Return when each API key last requested predictions."""
        return await self._router.key_uses()

    async def state(self, models: Collection[str] | None = None) -> RegionState:
        """Return the observed state, of some models or of all."""
        traffic = (
            await self._router.traffic()
        )  # first: the routed generations of replicas depend on the router's applied table
        return self._state(models, traffic, self._router.shadows)

    async def read_applied(self) -> AppliedState:
        """Return digests of the desired state. A large region takes a while: the event loop does not wait for it."""
        deployments, tables = tuple(self._wanted.deployments.values()), tuple(self._wanted.routes.values())
        return await asyncio.to_thread(AppliedState.of, deployments, tables)

    async def wait_change(self, models: Collection[str], token: str, *, wait_seconds: float) -> None:
        """Return once these models' state has another token, at the latest after `wait_seconds`."""
        deadline = time.monotonic() + wait_seconds
        while self._state(models).token == token and (left := deadline - time.monotonic()) > 0:
            await self._changes.wait_change(
                self._changes.number, wait_seconds=min(left, self._site.settings.idle_poll_seconds)
            )

    def _state(
        self,
        models: Collection[str] | None,
        traffic: tuple[GenerationTraffic, ...] = (),
        shadows: tuple[ShadowComparison, ...] = (),
    ) -> RegionState:
        keys = sorted((key for key in self._replicas if models is None or key.model in models), key=str)
        whole = RegionState(
            region=self._site.region,
            gateway_url=self._site.gateway_url,
            peer_url=self._site.peer_url,
            replicas=tuple(r.report() for key in keys for r in self._replicas[key]),
            routes=dict(self._envoy.routes),
            traffic=traffic,
            access_behind_seconds=self._delivery.behind_seconds,
            shadows=shadows,
        )
        return whole if models is None else with_token(whole.only(models))

    async def logs(self, query: LogQuery) -> tuple[ReplicaLog, ...]:
        """Return the output of the processes of its replicas."""
        running = {replica.name for replicas in self._replicas.values() for replica in replicas}
        return await self._hosts.read_logs(query, running=running)

    async def time_replicas(self, asked: TimingRound) -> RoundTimes:
        """Send two replicas requests in turns, and return their times. Raises NotFound, Unavailable."""
        return await self._timings.run(asked)

    async def _serve(self, model: str, served: tuple[ServedGeneration, ...]) -> None:
        if served:
            self._served[model] = served
        else:
            self._served.pop(model, None)
        await self._tables.done()

    async def _forget_later(self, model: str) -> None:
        async with self._route_locks[model]:
            table = self._routes.get(model)
            await self._serve(model, table.served if table else ())

    async def _forget(self, model: str, served: tuple[ServedGeneration, ...]) -> None:
        """Remove generations from the router's table, after the last requests of Envoy's former table have arrived."""
        if self._served.get(model, ()) != served:
            await asyncio.sleep(self._site.settings.settle_seconds)
            await self._serve(model, served)

    def _reconcile(self, deployment: Deployment) -> None:
        """Start missing replicas, end surplus ones, and send all of them their desired snapshots."""
        replicas = self._replicas[deployment.key]
        self._hosts.keep_available(deployment.key, deployment.replicas)
        sets = replica_sets(deployment)
        staying = [(r, r.digests) for r in _by_worth(replicas) if not r.leaving]
        members, surplus = assign_processes(sets, staying, swap=deployment.swap)
        for replica in surplus:
            replica.leave()
        for wanted, found in zip(sets, members, strict=True):
            found += [self._add_replica(deployment) for _ in range(wanted.replicas - len(found))]
            for replica in found:
                replica.want(
                    host_holds(deployment, wanted.holds),
                    memory_bytes=deployment.memory_bytes,
                    drain_seconds=deployment.drain_seconds,
                    swap=deployment.swap,
                )
        revision = self._publish_table()
        for replica in replicas:
            replica.release_after(revision)

    def _add_replica(self, deployment: Deployment) -> HostReplica:
        key = deployment.key
        taken = {replica.number for replica in self._replicas[key]}
        number = next(n for n in range(len(taken) + 1) if n not in taken)
        replica = self._new_replica(HostIdentity(key=key, number=number, engine=deployment.engine))
        self._live_with(replica)
        return replica

    def _new_replica(self, identity: HostIdentity, adopted: Adopted | None = None) -> HostReplica:
        around = RegionParts(
            self._router, self._publish_table, self._all_fetched, self._changes.rise, self._room, self._hosts
        )
        return HostReplica(identity, site=self._site, around=around, adopted=adopted)

    def _live_with(self, replica: HostReplica) -> None:
        self._replicas[replica.key].append(replica)
        life = asyncio.create_task(self._live(replica), name=replica.name)
        self._lives.add(life)
        life.add_done_callback(self._note_end)

    def _all_fetched(self, model: str) -> bool:
        """Return whether all replicas of the model have fetched.

        If its parts swapped one by one, neither generation would be complete for a while.
        """
        return not any(r.fetching for key, held in self._replicas.items() if key.model == model for r in held)

    def _note_end(self, life: asyncio.Task[None]) -> None:
        self._lives.discard(life)
        if not life.cancelled() and (fault := life.exception()):
            structlog.get_logger().error("replica lost", replica=life.get_name(), exc_info=fault)

    async def _live(self, replica: HostReplica) -> None:
        await replica.run()
        self._room.give_back(replica.name)
        self._replicas[replica.key].remove(replica)
        if not self._replicas[replica.key]:
            del self._replicas[replica.key]

    def _publish_table(self) -> int:
        """Write the router's table if it changed.

        Return the revision to wait for, even if the write has to be repeated.
        """
        if not self._publishing:
            return self._router.revision
        self._delivery.publish(self._routed_models)
        held = [r for replicas in self._replicas.values() for r in replicas]
        shadows = {model: table.shadow for model, table in self._routes.items() if table.shadow is not None}
        branched = router_table.models_by_hardware(self._served, shadows)
        endpoints = (
            (r.key.model, router_table.on_hardware(endpoint, r.key.hardware) if r.key.model in branched else endpoint)
            for r in held
            for endpoint in r.endpoints
        )
        coming = ((r.key.model, generation) for r in held for generation in r.coming)
        self._accesses |= {model: table.access for model, table in self._wanted.routes.items()}
        models = router_table.routed_models(
            self._served,
            endpoints,
            coming,
            self._terms,
            self._accesses,
            shadows=shadows,
            former=self._router.models,
        )
        choices = self._choices.of(self._other_gateways, self._routes)
        try:
            return self._router.publish(models, choices, egress=self._envoy.egress)
        except OSError as error:
            structlog.get_logger().error("router table not written, tried again soon", reason=str(error))
            return self._router.revision + 1

    @property
    def _routed_models(self) -> frozenset[str]:
        return frozenset({*self._served, *self._routes, *self._wanted.routes})

    @property
    def _other_gateways(self) -> Mapping[str, str]:
        return {region: url for region, url in self._peers.gateways.items() if region != self._site.region}

    @property
    def _terms(self) -> Mapping[str, router_table.Terms]:
        drain_seconds = self._site.settings.drain_seconds
        return router_table.terms_of(self._wanted.deployments.values(), drain_seconds=drain_seconds)

    @property
    def _longest_drain(self) -> float:
        return longest_drain(self._wanted.deployments.values(), drain_seconds=self._site.settings.drain_seconds)

    def _publish_gateway(self) -> int:
        if not self._gateway_follows:
            return self._envoy.version
        gateway = Gateway(
            region=self._site.region,
            router_url=self._router.url,
            router_proof=self._router.gateway_proof,
            peers=self._other_gateways,
            tables=dict(self._routes),
            request_seconds=self._site.settings.request_seconds,
            stream_idle_seconds=self._site.settings.stream_idle_seconds,
            allowed=self._site.allowed_hosts,
            tls=self._site.peer_tls,
            closed=self._access.find_closed(self._routes.values()),
        )
        return self._envoy.publish(gateway)

    def _router_changed(self) -> None:
        """Write Envoy's files again: the router may listen on another address."""
        with suppress(OSError):  # repeated soon
            self._publish_gateway()

    async def _router_moved(self) -> None:
        """Return once Envoy sends to the router's current address."""
        await self._wait_resumed()
        await self._gateway.done()

    async def _run_maintenance(self) -> None:
        """Periodically re-read the peers file, retry failed writes, and sweep the cache and the logs."""
        while True:
            await asyncio.sleep(self._site.settings.idle_poll_seconds)
            if self._peers.refresh():
                structlog.get_logger().info("peers changed", peers=sorted(self._peers.gateways))
            with suppress(OSError):
                self._publish_gateway()
            self._publish_table()
            await self._delivery.look()
            wanted = {held.digest for wanted in self._wanted.deployments.values() for held in wanted.holds}
            if swept := self._cache.sweep(wanted):
                await asyncio.to_thread(remove, swept)
            if self._logs.due:
                await asyncio.to_thread(self._logs.look)

    def _check_region(self, field: str, value: str) -> None:
        if value != self._site.region:
            msg = f"{field}: this agent runs region {self._site.region!r}, not {value!r}"
            raise InvalidInput(msg, field=field, value=value, allowed=[self._site.region])


def _by_worth(replicas: Iterable[HostReplica]) -> list[HostReplica]:
    """Sort replicas by their value.

    Replicas that are not ready come last, before them those in a swap, each from the oldest to the youngest. The last
    are ended or swapped first. If the same swap is desired again, the same replicas continue with it; if it is
    cancelled, they stay, and no other replica swaps in their place.
    """
    return sorted(replicas, key=lambda replica: (not replica.ready, not replica.stays, replica.number))
