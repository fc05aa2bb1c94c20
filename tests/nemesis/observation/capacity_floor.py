"""The capacity floor, on samples of the regions' state: what traffic each generation gets, and what is ready for it."""

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any

Sample = Mapping[str, Any]
"""`tables`: gateway's region -> model -> [[region, generation, fraction], ...], only those that it follows and that
stood still while the replicas were read; `replicas`: region -> [[model, part, [generation, ...]], ...]. A region that
did not answer is in neither."""

ROUNDING = 1e-6


@dataclass(frozen=True)
class Shortfall:
    """Less is ready than the traffic that is sent there. Requests a second."""

    model: str
    part: str
    generation: int
    region: str
    ready: float
    needed: float

    def __str__(self) -> str:
        where = f"{self.model}.{self.part} generation {self.generation} in {self.region}"
        return f"{where}: {self.ready:g} requests/s ready, {self.needed:g} sent"


def shortfalls(
    sample: Sample, parts: Mapping[str, Collection[str]], demand: Callable[[str], float], replica_qps: float
) -> list[Shortfall]:
    """Every part, generation and region of the models in `parts` that gets more than it is ready for.

    `demand` is a model's, in each region.
    """
    needed: dict[tuple[str, str, int], float] = {}
    for models in sample["tables"].values():
        for model, shares in models.items():
            for region, generation, fraction in shares:
                key = (model, region, generation)
                needed[key] = needed.get(key, 0.0) + fraction * demand(model)
    found = []
    for (model, region, generation), qps in needed.items():
        held = sample["replicas"].get(region)
        if held is None:
            continue
        for part in parts.get(model, ()):
            ready = replica_qps * sum(m == model and p == part and generation in ready for m, p, ready in held)
            if ready < qps - ROUNDING:
                found.append(Shortfall(model, part, generation, region, ready, qps))
    return found
