"""Profiles: measurements of replicas of a snapshot. A profile is written once and never changed."""

from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping

from sqlmodel import col, func, select, tuple_

from ipnext.model.manifest.derived.profiled import Profiles as Measured
from ipnext.model.manifest.derived.profiled import apply_profiles, wants_profiles
from ipnext.model.manifest.manifest import ModelManifest
from ipnext.model.registry.profile import Profile, StoredProfile, architecture_of
from ipnext.model.wire import decode
from ipnext.store.registry.generations import Generations
from ipnext.store.tables.registry import ProfileRow, SnapshotRow
from ipnext.store.unit_of_work import batches, bytes_of, document


class Profiles(Generations):
    """Measurements, and which of them apply to the serving snapshots."""

    def add_profile(self, model: str, part: str, snapshot: int, profile: Profile) -> StoredProfile:
        """Store a measurement of a snapshot; an equal one is stored once. Raises NotFound."""
        self._writing_model(model)
        architecture = architecture_of(self.snapshot(model, part, snapshot).manifest)
        stored = StoredProfile(**dict(profile), model=model, part=part, snapshot=snapshot)
        row = self._session.exec(select(ProfileRow).where(ProfileRow.id == stored.id)).first()
        if row is None:
            text = document(stored)
            self._add(
                ProfileRow(
                    id=stored.id,
                    model=model,
                    part=part,
                    snapshot=snapshot,
                    hardware=stored.hardware,
                    architecture=architecture,
                    profile=text,
                    measured_at=stored.measured_at,
                    created_at=self._now(),
                )
            )
            self._count_documents(model, bytes_of(text))
        return stored

    def profiles(self, model: str, part: str, snapshot: int) -> tuple[StoredProfile, ...]:
        """Return the measurements of one snapshot, newest first. Raises NotFound."""
        self.snapshot(model, part, snapshot)
        query = select(ProfileRow).where(
            ProfileRow.model == model, ProfileRow.part == part, ProfileRow.snapshot == snapshot
        )
        query = query.order_by(col(ProfileRow.measured_at).desc(), col(ProfileRow.ordinal).desc())
        return tuple(_profile(row) for row in self._session.exec(query))

    def profiles_of(self, model: str, generation: int | None) -> Measured:
        """Map (part, hardware) to the newest measurement that applies to a generation's snapshots.

        If the generation is None, the newest snapshots count.

        A measurement of another snapshot applies if both have the same architecture.
        """
        return self.profiles_of_all({model: generation}).get(model, {})

    def profiles_of_all(self, generations: Mapping[str, int | None]) -> Mapping[str, Measured]:
        """Map each model to its profiles by `profiles_of`; models without any are left out.

        The number of statements depends neither on the models nor on their histories; only applicable profiles are
        read.
        """
        wanted = [
            (found.model, found.part, architecture_of(found.manifest))
            for found in self.snapshots_named(self._snapshots_in(generations))
        ]
        result: dict[str, dict[tuple[str, str], StoredProfile]] = defaultdict(dict)
        for row in self._newest_profiles(wanted):
            result[row.model][row.part, row.hardware] = _profile(row)
        return result

    def as_measured(self, manifest: ModelManifest, generation: int | None) -> ModelManifest:
        """Return the manifest with the throughput that was measured, for the snapshots of a generation."""
        if not wants_profiles(manifest):
            return manifest
        return apply_profiles(manifest, self.profiles_of(manifest.name, generation))

    def _newest_profiles(self, wanted: Collection[tuple[str, str, str]]) -> Iterator[ProfileRow]:
        """Yield the newest profile for each (model, part, architecture) and each kind of hardware."""
        row = ProfileRow
        kind = (col(row.model), col(row.part), col(row.architecture), col(row.hardware))
        newest = func.row_number().over(
            partition_by=kind, order_by=(col(row.measured_at).desc(), col(row.ordinal).desc())
        )
        for some in batches(wanted):
            ranked = select(row.ordinal, newest.label("rank")).where(tuple_(*kind[:3]).in_(some)).subquery()
            yield from self._session.exec(
                select(row).join(ranked, (col(row.ordinal) == ranked.c.ordinal) & (ranked.c.rank == 1))
            )

    def _snapshots_in(self, generations: Mapping[str, int | None]) -> list[tuple[str, str, int]]:
        """Return (model, part, number) of every snapshot in these generations.

        The newest of each part if a model has none.
        """
        numbered = {(model, number) for model, number in generations.items() if number}
        found = [
            (generation.model, part, number)
            for generation in self.generations_named(numbered)
            for part, number in generation.snapshots.items()
        ]
        unnumbered = [model for model, number in generations.items() if not number]
        newest = select(SnapshotRow.model, SnapshotRow.part, func.max(SnapshotRow.number))
        for some in batches(unnumbered):
            mine = newest.where(col(SnapshotRow.model).in_(some))
            found += self._session.exec(mine.group_by(col(SnapshotRow.model), col(SnapshotRow.part)))
        return found


def _profile(row: ProfileRow) -> StoredProfile:
    return decode(StoredProfile, row.profile)
