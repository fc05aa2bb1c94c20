"""A wave of a transition, forward or in a revert, and the states that it leads to."""

from typing import Any, NamedTuple

from activities.state import wave_state as waves
from tests.workflows.simulation.infrastructure import Seen
from tests.workflows.simulation.journal import Moving


class Wave(NamedTuple):
    """One wave of one transition, forward or in its revert."""

    moving: Moving
    index: int
    back: bool
    deadline: float
    early: bool = False
    by_waves: bool = False

    @property
    def last(self) -> bool:
        """Whether nothing follows: the last wave, all of a revert in one step, the first wave undone."""
        if self.back:
            return self.index == 0 or not self.by_waves
        return self.index + 1 == len(self.moving.transition.waves)

    @property
    def model(self) -> str:
        """The model that moves."""
        return self.moving.model


def state_of(world: Any, wave: Wave, phase: waves.Phase) -> waves.ModelWaveState:
    """The state that a phase leads to; the real function, once for each question."""
    key = (wave.moving.id, wave.index, wave.back, wave.by_waves, phase)
    if key not in world.states:
        find = (waves.state_undone if wave.by_waves else waves.state_back) if wave.back else waves.state_at
        world.states[key] = find(wave.moving.transition, wave.model, wave.index, phase)
    return world.states[key]


def origin_of(wave: Wave) -> waves.ModelWaveState:
    """The state that a transition began with."""
    return waves.state_of(wave.moving.transition.origin, wave.model, apart=wave.moving.transition.apart)


def end_of(world: Any, wave: Wave) -> waves.ModelWaveState:
    """The state that a run is on its way to."""
    index = 0 if wave.back else len(wave.moving.transition.waves) - 1
    return state_of(world, wave._replace(index=index, by_waves=wave.back), "released")


def regions_counted_on(world: Any, wave: Wave, state: waves.ModelWaveState) -> frozenset[str]:
    """As activities/transition/activities.py: where a run goes, and by way of what, but for what it only leaves."""
    return end_of(world, wave).regions | (state.regions - origin_of(wave).regions)


def target_of(wave: Wave) -> waves.ModelWaveState:
    """The replicas that a wave waits for, by the real function."""
    return waves.wave_target(wave.moving.transition, wave.model, wave.index, wave.moving.generation)


def peak_of(world: Any, wave: Wave) -> Any:
    """The most processes of each slot until a transition or its revert ends; the real function, called once."""
    key = (wave.moving.id, "peak")
    if key not in world.states:
        world.states[key] = waves.peak(wave.moving.transition, wave.model)
    return world.states[key]


def order_by_region(states: dict[str, Seen]) -> list[Seen]:
    """Hosts by region, in the order of the regions' names."""
    return [states[name] for name in sorted(states)]
