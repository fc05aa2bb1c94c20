"""Timing of a region's replicas: one round at a time for each model."""

from collections.abc import Iterable, Mapping

from ipnext.errors import NotFound, Unavailable
from ipnext.infra.control import Control
from ipnext.infra.host.replica import HostReplica
from ipnext.infra.host.replica_timing import time_replicas
from ipnext.model.deployment.deployment import DeploymentKey
from ipnext.model.gate.live import RoundTimes, TimedReplica, TimingRound


class ReplicaTimings:
    """Times the replicas of a region, which `replicas` always contains."""

    def __init__(self, control: Control, replicas: Mapping[DeploymentKey, Iterable[HostReplica]]) -> None:
        self._control = control
        self._replicas = replicas
        self._timed: set[str] = set()
        """Models whose replicas are being timed."""

    async def run(self, asked: TimingRound) -> RoundTimes:
        """Send two replicas requests in turns, and return their times.

        NotFound if one of them is not ready; Unavailable while the model is timed already, so that calls do not add up.
        """
        if asked.model in self._timed:
            msg = f"replicas of {asked.model} are being timed; try again"
            raise Unavailable(msg)
        urls = {each: self._find_url(asked, each) for each in (asked.new, asked.serving)}

        async def send(replica: TimedReplica, body: str, seconds: float) -> None:
            url = urls[replica]
            await self._control.infer(url, asked.model, asked.part, replica.generation, body, seconds=seconds)

        self._timed.add(asked.model)
        try:
            return await time_replicas(asked, send)
        finally:
            self._timed.discard(asked.model)

    def _find_url(self, asked: TimingRound, wanted: TimedReplica) -> str:
        own = (
            r
            for key, held in self._replicas.items()
            if (key.model, key.part) == (asked.model, asked.part)
            for r in held
        )
        for replica in own:
            if replica.name == wanted.id and wanted.generation in replica.ready:
                return replica.url
        msg = f"no replica {wanted.id!r} of {asked.model}/{asked.part} is ready for generation {wanted.generation}"
        raise NotFound(msg)
