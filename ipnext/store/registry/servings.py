"""Snapshots that serve the users of each region, and their freshness.

Written with the route tables: a snapshot serves the users of a region once no older one of its part answers any of
them. So the oldest snapshot that answers there is the one that serves.
"""

from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping
from datetime import datetime, timedelta
from typing import Any, Final, NamedTuple

from sqlalchemy import bindparam, delete, func, insert, or_, update
from sqlalchemy import select as sa_select
from sqlmodel import col, select, tuple_

from ipnext.model.deployment.route_table import RouteTable
from ipnext.model.lifecycle.freshness import HourShare, ServingSnapshot, SnapshotServing
from ipnext.model.lifecycle.status import ConditionType
from ipnext.model.manifest.freshness import FreshnessSpec
from ipnext.model.manifest.manifest import ModelManifest, ModelSpec
from ipnext.model.wire import decode_frozen
from ipnext.store.tables.changes import ConditionRow
from ipnext.store.tables.registry import FirstServingRow, GenerationRow, ModelRow, ServingSnapshotRow, SnapshotRow
from ipnext.store.tables.row import METADATA
from ipnext.store.unit_of_work import UnitOfWork, batches, document, plain, read_fields

KEPT_SERVINGS: Final = 20
"""Snapshots, the newest, of each part and region of which the first serving is kept."""

SERVINGS = METADATA.tables[ServingSnapshotRow.__tablename__]
CONDITIONS = METADATA.tables[ConditionRow.__tablename__]
FIRST = METADATA.tables[FirstServingRow.__tablename__]
SNAPSHOTS = METADATA.tables[SnapshotRow.__tablename__]
GENERATIONS = METADATA.tables[GenerationRow.__tablename__]

_OF_MODEL = sa_select(SERVINGS).where(SERVINGS.c.model == bindparam("of_model"))
_AT = (
    SERVINGS.c.model == bindparam("of_model"),
    SERVINGS.c.part == bindparam("of_part"),
    SERVINGS.c.region == bindparam("of_region"),
)
_SERVING_IS = update(SERVINGS).where(*_AT)
_NEW_SERVING = insert(SERVINGS)
_NEW_FIRST = insert(FIRST)

Place = tuple[str, str, str]
"""Model, part, region of the users."""


class _Times(NamedTuple):
    """Times of a snapshot."""

    trained_at: datetime | None
    published_at: datetime


class Servings(UnitOfWork):
    """The only writer of serving snapshots."""

    def serving_snapshots(self, model: str) -> tuple[ServingSnapshot, ...]:
        """Return what serves of a model, by part and region."""
        found = map(_serving, self._run(_OF_MODEL, of_model=model))
        return _by_place(each for each in found if each is not None)

    def serving_snapshots_of_all(self) -> tuple[ServingSnapshot, ...]:
        """Return what serves of all models of visible owners, by model, part and region."""
        query = sa_select(SERVINGS).where(*self._is_of_visible_owner(SERVINGS.c.model))
        return _by_place(each for each in map(_serving, self._run(query)) if each is not None)

    def late_snapshots(self) -> Mapping[str, tuple[ServingSnapshot, ...]]:
        """Map models to what serves of them and is older than its target, or has a recorded breach."""
        of = SERVINGS.c
        query = sa_select(SERVINGS).where(
            of.late_at.is_not(None), or_(of.late_at < self.now(), of.breached_at.is_not(None))
        )
        found: dict[str, list[ServingSnapshot]] = defaultdict(list)
        for each in map(_serving, self._run(query)):
            if each is not None:
                found[each.model].append(each)
        return {model: _by_place(of) for model, of in sorted(found.items())}

    def count_judged(self) -> int:
        """Count the parts that ask for freshness, in each region in which they serve."""
        query = sa_select(func.count()).select_from(SERVINGS).where(SERVINGS.c.late_at.is_not(None))
        return int(self._run(query).scalar_one())

    def unjudged_models(self) -> tuple[str, ...]:
        """Return models with a part that asks for freshness and serves, and without the condition; and the reverse."""
        asks = SERVINGS.c.late_at.is_not(None)
        judged = CONDITIONS.c.type == ConditionType.FRESH.value
        mine = CONDITIONS.c.model == SERVINGS.c.model
        new = sa_select(SERVINGS.c.model).where(asks, ~sa_select(CONDITIONS.c.model).where(judged, mine).exists())
        gone = sa_select(CONDITIONS.c.model).where(judged, ~sa_select(SERVINGS.c.model).where(asks, mine).exists())
        return tuple(sorted({*self._run(new.distinct()).scalars(), *self._run(gone).scalars()}))

    def first_servings(self, model: str, snapshots: Collection[tuple[str, int]]) -> Mapping[Any, Any]:
        """Map (part, number) of these snapshots to the regions that they served, each with the first time.

        The newest KEPT_SERVINGS of each part and region are known.
        """
        found: dict[tuple[str, int], list[SnapshotServing]] = {key: [] for key in snapshots}
        for some in batches(snapshots):
            query = sa_select(FIRST).where(FIRST.c.model == model, tuple_(FIRST.c.part, FIRST.c.number).in_(some))
            for row in self._run(query.order_by(FIRST.c.region)):
                found[row.part, row.number].append(SnapshotServing(region=row.region, serving_at=row.serving_at))
        return {key: tuple(of) for key, of in found.items()}

    def void_breaches(self) -> tuple[Place, ...]:
        """Return the places with a recorded breach at which nothing is judged any more.

        Nothing serves there, or the manifest asks for no freshness of the part.
        """
        of = SERVINGS.c
        query = sa_select(of.model, of.part, of.region).where(
            of.breached_at.is_not(None), or_(of.number.is_(None), of.target_seconds.is_(None))
        )
        return tuple(sorted((row.model, row.part, row.region) for row in self._run(query)))

    def mark_breach(self, place: Place, *, begins: bool) -> None:
        """Record that a breach of a part's freshness in a region begins, or that it has ended."""
        model, part, region = place
        self._writing(model)
        at = self._now() if begins else None
        self._write(_SERVING_IS, of_model=model, of_part=part, of_region=region, breached_at=at)

    def note_trained(self, model: str, part: str, digest: str, trained_at: datetime) -> None:
        """Record that a training ended with the bytes of a known snapshot: the latest one counts for its age."""
        self._writing(model)
        trained_at = min(trained_at, self._now())
        same = (SNAPSHOTS.c.model == model, SNAPSHOTS.c.part == part, SNAPSHOTS.c.digest == digest)
        query = sa_select(SNAPSHOTS.c.number, SNAPSHOTS.c.trained_at).where(*same)
        row = self._run(query.order_by(SNAPSHOTS.c.number.desc()).limit(1)).first()
        if row is None or (row.trained_at is not None and row.trained_at >= trained_at):
            return
        self._write(update(SNAPSHOTS).where(*same, SNAPSHOTS.c.number == row.number).values(trained_at=trained_at))
        for found in self.serving_snapshots(model):
            if (found.part, found.number) == (part, row.number):
                self._account(found)
                at = {"of_model": model, "of_part": part, "of_region": found.region}
                late_at = _late_at(trained_at, found.target_seconds)
                self._write(_SERVING_IS, **at, trained_at=trained_at, late_at=late_at)

    def _set_targets(self, model: str, spec: ModelSpec) -> None:
        """Judge what serves by the freshness that a manifest asks for, from now on."""
        asked = _freshness_of(spec)
        for row in self._run(_OF_MODEL, of_model=model).all():
            wanted = asked.get(row.part)
            target = None if wanted is None else wanted.target_seconds
            objective = 1.0 if wanted is None else wanted.objective
            if (target, objective) == (row.target_seconds, row.objective):
                continue
            said: dict[str, Any] = {"target_seconds": target, "objective": objective}
            found = _serving(row)
            said["late_at"] = None if found is None else _late_at(found.born_at, target)
            if found is not None and None not in {target, row.target_seconds}:
                self._account(found)
            else:
                said |= {"window": "[]", "accounted_at": self._now()}
            self._write(_SERVING_IS, of_model=model, of_part=row.part, of_region=row.region, **said)

    def _account(self, found: ServingSnapshot) -> None:
        """Bring the window of a serving snapshot up to now, before anything that it is judged by changes."""
        now = max(self._now(), found.accounted_at)
        at = {"of_model": found.model, "of_part": found.part, "of_region": found.region}
        self._write(_SERVING_IS, **at, window=_window_text(found.window_at(now)), accounted_at=now)

    def _note_routes(self, tables: Collection[RouteTable]) -> None:
        """Record the snapshots that serve by these tables, each with other generations than the stored one.

        The number of statements depends on the number of snapshots that begin to serve, not on that of the tables.
        """
        served = self._oldest_snapshots(tables)
        regions = {(table.model, table.region) for table in tables}
        rows = {(row.model, row.part, row.region): row for row in self._serving_rows(regions)}
        ends = [place for place, row in rows.items() if place not in served and row.number is not None]
        begins = {
            place: number for place, number in served.items() if place not in rows or rows[place].number != number
        }
        for place in ends:
            self._end_serving(rows[place])
        if not begins:
            return
        now = self._now()
        times = self._times_of({(model, part, number) for (model, part, _), number in begins.items()})
        new = self._begin_first(
            {place: number for place, number in begins.items() if _key(place, number) in times}, now
        )
        asked = self._asked_freshness({model for model, _, _ in begins.keys() - rows.keys()})
        for place, number in begins.items():
            found = times.get(_key(place, number))
            if found is None:
                continue
            said: dict[str, Any] = {"number": number, "trained_at": found.trained_at}
            said |= {"published_at": found.published_at, "since": now}
            if place in new:
                said["to_serving_seconds"] = max(0.0, (now - found.published_at).total_seconds())
            self._put_serving(place, rows.get(place), said, asked)

    def _put_serving(
        self, place: Place, row: Any, said: Mapping[str, Any], asked: Mapping[str, Mapping[str, FreshnessSpec]]
    ) -> None:
        model, part, region = place
        born_at = said["published_at"] if said["trained_at"] is None else said["trained_at"]
        if row is not None:
            said = {**said, "late_at": _late_at(born_at, row.target_seconds)}
            former = _serving(row)
            if former is not None:
                self._account(former)
            more = {} if former is not None else {"accounted_at": self._now()}
            self._write(_SERVING_IS, of_model=model, of_part=part, of_region=region, **said, **more)
            return
        wanted = asked.get(model, {}).get(part)
        target = None if wanted is None else wanted.target_seconds
        basis = {
            "model": model,
            "part": part,
            "region": region,
            "to_serving_seconds": None,
            "target_seconds": target,
            "objective": 1.0 if wanted is None else wanted.objective,
            "late_at": _late_at(born_at, target),
            "window": "[]",
            "accounted_at": self._now(),
            "breached_at": None,
        }
        self._write(_NEW_SERVING, **{**basis, **said})

    def _end_serving(self, row: Any) -> None:
        found = _serving(row)
        if found is not None:
            self._account(found)
        at = {"of_model": row.model, "of_part": row.part, "of_region": row.region}
        self._write(_SERVING_IS, **at, number=None, late_at=None)

    def _delete_servings(self, model: str, region: str | None) -> None:
        """Forget what serves a model's users in a region, or in all."""
        query = delete(SERVINGS).where(SERVINGS.c.model == model)
        self._write(query if region is None else query.where(SERVINGS.c.region == region))

    def _oldest_snapshots(self, tables: Collection[RouteTable]) -> Mapping[Place, int]:
        """Map each place that has users answered by these tables to the oldest snapshot that answers any of them."""
        wanted = {(table.model, generation) for table in tables for generation in table.answering}
        snapshots: dict[tuple[str, int], Mapping[str, int]] = {}
        for some in batches(wanted):
            query = sa_select(GENERATIONS.c.model, GENERATIONS.c.number, GENERATIONS.c.snapshots)
            for row in self._run(query.where(tuple_(GENERATIONS.c.model, GENERATIONS.c.number).in_(some))):
                snapshots[row.model, row.number] = plain(row.snapshots)
        found: dict[Place, int] = {}
        for table in tables:
            for generation in table.answering:
                for part, number in snapshots.get((table.model, generation), {}).items():
                    place = (table.model, part, table.region)
                    found[place] = min(number, found.get(place, number))
        return found

    def _serving_rows(self, regions: Collection[tuple[str, str]]) -> Iterable[Any]:
        for some in batches(regions):
            yield from self._run(sa_select(SERVINGS).where(tuple_(SERVINGS.c.model, SERVINGS.c.region).in_(some))).all()

    def _times_of(self, names: Collection[tuple[str, str, int]]) -> Mapping[tuple[str, str, int], _Times]:
        of = SNAPSHOTS.c
        found: dict[tuple[str, str, int], _Times] = {}
        for some in batches(names):
            query = sa_select(of.model, of.part, of.number, of.trained_at, of.created_at)
            for row in self._run(query.where(tuple_(of.model, of.part, of.number).in_(some))):
                found[row.model, row.part, row.number] = _Times(row.trained_at, row.created_at)
        return found

    def _begin_first(self, begins: Mapping[Place, int], now: datetime) -> frozenset[Place]:
        """Record first servings, and forget the oldest; return the places at which the snapshot had never served."""
        known: dict[Place, set[int]] = defaultdict(set)
        of = FIRST.c
        for some in batches(begins):
            for row in self._run(sa_select(FIRST).where(tuple_(of.model, of.part, of.region).in_(some))):
                known[row.model, row.part, row.region].add(row.number)
        new = frozenset(place for place, number in begins.items() if number not in known[place])
        if not new:
            return new
        lines = [
            {"model": model, "part": part, "region": region, "number": begins[model, part, region]}
            for model, part, region in sorted(new)
        ]
        self._connection.execute(_NEW_FIRST, [{**line, "serving_at": now} for line in lines])
        gone = [
            (*place, number)
            for place in new
            for number in sorted({*known[place], begins[place]}, reverse=True)[KEPT_SERVINGS:]
        ]
        for some_gone in batches(gone):
            self._run(delete(FIRST).where(tuple_(of.model, of.part, of.region, of.number).in_(some_gone)))
        return new

    def _asked_freshness(self, models: Collection[str]) -> Mapping[str, Mapping[str, FreshnessSpec]]:
        """Map each of these models to the freshness that its newest manifest asks for, by part."""
        found: dict[str, Mapping[str, FreshnessSpec]] = {}
        for some in batches(models):
            query = select(ModelRow.name, ModelRow.manifest).where(col(ModelRow.name).in_(some))
            for name, text in self._session.exec(query):
                found[name] = _freshness_of(decode_frozen(ModelManifest, text).spec)
        return found


def _freshness_of(spec: ModelSpec) -> Mapping[str, FreshnessSpec]:
    return {part.name: part.freshness for part in spec.parts if part.freshness is not None}


def _late_at(born_at: datetime, target_seconds: float | None) -> datetime | None:
    return None if target_seconds is None else born_at + timedelta(seconds=target_seconds)


def _key(place: Place, number: int) -> tuple[str, str, int]:
    return (place[0], place[1], number)


def _by_place(found: Iterable[ServingSnapshot]) -> tuple[ServingSnapshot, ...]:
    return tuple(sorted(found, key=lambda each: (each.model, each.part, each.region)))


def _window_text(window: Iterable[HourShare]) -> str:
    return document([[each.hour, round(each.observed, 3), round(each.late, 3)] for each in window])


def _serving(row: Any) -> ServingSnapshot | None:
    """Return what serves at a place; None if nothing does now."""
    if row.number is None:
        return None
    window = tuple(HourShare(hour, seen, late) for hour, seen, late, *_ in plain(row.window))
    return ServingSnapshot(**read_fields(ServingSnapshot, row, but={"window"}), window=window)
