"""How regions and the fleet are shown."""

from collections.abc import Iterable

from rich.table import Table

from ipnext.cli.output import age, number, rows
from ipnext.model.api.resources import FleetView, RegionView
from ipnext.model.lifecycle.regions.drain import DrainState, DrainView


def regions_table(regions: Iterable[RegionView]) -> Table:
    """One line for each hardware kind of each region."""
    lines = (
        (
            r.region,
            _reachable(r),
            item.hardware,
            *_use(item.units, item.used, item.free),
            r.replica_count,
            _service(r.drain),
            *_drain(r),
        )
        for r in regions
        for item in r.supply
    )
    heads = ("region", "reachable", "hardware", "units", "used", "free", "replicas in region")
    return rows("", (*heads, "service", "since", "reason", "left there"), lines)


def _reachable(region: RegionView) -> str:
    if not region.reachable:
        return "no"
    behind = region.access_behind_seconds
    return "yes" if behind is None else f"yes, old access list for {behind:.0f} s"


def fleet_tables(fleet: FleetView) -> Iterable[Table | str]:
    """Supply, round trips and owners."""
    spec = fleet.spec
    yield f"fleet, version {fleet.version}, applied {age(fleet.updated_at)} ago\n"
    supply = ((s.region, s.hardware, number(s.units), number(s.unit_cost)) for s in spec.supply)
    yield rows("supply", ("region", "hardware", "units", "$/h each"), supply)
    trips = ((name, *map(number, row)) for name, row in zip(spec.regions, spec.rtt_ms, strict=True))
    yield rows("\nround trip in ms, from users in a row's region", ("", *spec.regions), trips)
    if spec.owners:
        lines = ((o.owner, "no limit" if o.budget_per_hour is None else number(o.budget_per_hour)) for o in spec.owners)
        yield rows("\nowners", ("owner", "$/h"), lines)


def _use(units: float, used: float, free: float) -> tuple[str, str, str]:
    return number(units), number(used), number(free)


def _service(drain: DrainView | None) -> str:
    if drain is None:
        return "in service"
    return drain.status


def _drain(region: RegionView) -> tuple[str, str, str]:
    """Return since when, why, and what is left.

    Of a lost region, that is what still runs there: it gets no orders until it is back.
    """
    drain = region.drain
    if drain is None:
        return "", "", ""
    left = (
        f"{drain.models_left} models, {drain.replicas_left} replicas, "
        f"{number(drain.traffic_left_qps)} requests or tokens/s"
    )
    if drain.lost:
        left = f"planned: {left}"
    elif drain.state is DrainState.DRAINING and drain.message:
        left += f"; {drain.message}"
    if drain.lost and region.replica_count:
        left += f"; it lives: {region.replica_count} replicas run on until `ipnext undrain {region.region}`"
    return age(drain.created_at), drain.reason, left
