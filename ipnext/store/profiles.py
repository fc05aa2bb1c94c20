"""Profiles: what replicas of a snapshot were measured to do. A profile is written once and never changed."""

from sqlmodel import col, select
from sqlmodel.sql.expression import SelectOfScalar

from ipnext.model.manifest import ModelManifest
from ipnext.model.measured import Profiles as Measured
from ipnext.model.measured import measured, wants_profiles
from ipnext.model.profile import Profile, StoredProfile, architecture_of
from ipnext.model.wire import decode
from ipnext.store.snapshots import Snapshots
from ipnext.store.tables import ProfileRow
from ipnext.store.unit import document


class Profiles(Snapshots):
    """Measurements, and which of them hold for what serves."""

    def add_profile(self, model: str, part: str, snapshot: int, profile: Profile) -> StoredProfile:
        """Keep a measurement of a snapshot; the same one again is the one that is there. NotFound."""
        self._writing_model(model)
        self.snapshot(model, part, snapshot)
        stored = StoredProfile(**dict(profile), model=model, part=part, snapshot=snapshot)
        row = self._session.exec(select(ProfileRow).where(ProfileRow.id == stored.id)).first()
        if row is None:
            self._add(
                ProfileRow(
                    id=stored.id,
                    model=model,
                    part=part,
                    snapshot=snapshot,
                    hardware=stored.hardware,
                    profile=document(stored),
                    measured_at=stored.measured_at,
                    created_at=self._now(),
                )
            )
        return stored

    def profiles(self, model: str, part: str, snapshot: int) -> tuple[StoredProfile, ...]:
        """Measurements of one snapshot, newest first. NotFound."""
        self.snapshot(model, part, snapshot)
        query = _newest_first(model).where(ProfileRow.part == part, ProfileRow.snapshot == snapshot)
        return tuple(_profile(row) for row in self._session.exec(query))

    def profiles_of(self, model: str, generation: int | None) -> Measured:
        """(part, hardware) -> the newest measurement that holds for a generation's snapshots; without one, the newest.

        That of another snapshot holds where both have the same architecture.
        """
        rows = self._session.exec(_newest_first(model)).all()
        if not rows:
            return {}
        numbers = self._snapshot_numbers(model, generation)
        wanted = {part: architecture_of(self.snapshot(model, part, n).manifest) for part, n in numbers.items()}
        found: dict[tuple[str, str], StoredProfile] = {}
        for row in rows:
            key = (row.part, row.hardware)
            if key in found or row.part not in wanted:
                continue
            if architecture_of(self.snapshot(model, row.part, row.snapshot).manifest) == wanted[row.part]:
                found[key] = _profile(row)
        return found

    def as_measured(self, manifest: ModelManifest, generation: int | None) -> ModelManifest:
        """The manifest with the throughput that was measured, for the snapshots of a generation."""
        if not wants_profiles(manifest):
            return manifest
        return measured(manifest, self.profiles_of(manifest.name, generation))

    def _snapshot_numbers(self, model: str, generation: int | None) -> dict[str, int]:
        if generation:
            return dict(self.generation(model, generation).snapshots)
        return {part: row.number for part, row in self._newest_snapshots(model).items()}


def _newest_first(model: str) -> SelectOfScalar[ProfileRow]:
    query = select(ProfileRow).where(ProfileRow.model == model)
    return query.order_by(col(ProfileRow.measured_at).desc(), col(ProfileRow.ordinal).desc())


def _profile(row: ProfileRow) -> StoredProfile:
    return decode(StoredProfile, row.profile)
