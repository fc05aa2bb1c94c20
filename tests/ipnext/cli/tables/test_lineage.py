"""How a snapshot's lineage is shown: no client published what the platform made."""

from datetime import UTC, datetime

import pytest

from ipnext.cli.tables.lineage import lineage_tables
from ipnext.model.api.lineage import RelatedSnapshot, SnapshotLineage

PUBLISHED = "published by a client, without a training run"


@pytest.mark.parametrize(
    ("derivation", "told"),
    [
        (None, [PUBLISHED]),
        ("trained on", [PUBLISHED, "trained on of whole/2"]),
        ("cut", ["cut of whole/2"]),
        ("optimized", ["optimized of whole/2"]),
    ],
)
def test_only_a_published_snapshot_is_told_to_have_come_from_a_client(derivation, told):
    parent = derivation and RelatedSnapshot(part="whole", number=2, digest="1" * 64, derivation=derivation)
    now = datetime.now(UTC)
    one = SnapshotLineage(
        model="m", part="tables", number=1, digest="0" * 64, created_at=now, size_bytes=4, parent=parent
    )
    assert [line for line in lineage_tables(one) if isinstance(line, str)][1:] == told
