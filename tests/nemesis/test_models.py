"""What a run serves: marks that tell snapshots apart, and which no gate may take for drift."""

import struct

import pytest
import yaml

from ipnext.model.manifest.parser import parse_manifest
from tests.nemesis.models import BRIEFS, SHIFT, Forge, manifest, mark_of

LONGEST_RUN = range(1, 2000)
MOST_ASKED = 999


@pytest.mark.parametrize("shifted", [False, True])
def test_no_two_snapshots_share_a_mark_and_each_is_exact_in_32_bits(shifted):
    marks = [mark_of(number, shifted=shifted) for number in LONGEST_RUN]
    assert len(set(marks)) == len(marks)
    for value in (*marks, *(mark + MOST_ASKED for mark in marks)):
        assert struct.unpack("f", struct.pack("f", value))[0] == value


def test_marks_of_one_run_differ_by_far_less_than_what_users_ask_with():
    assert mark_of(LONGEST_RUN[-1]) - mark_of(1) < MOST_ASKED / 20
    assert mark_of(1, shifted=True) - mark_of(LONGEST_RUN[-1]) > SHIFT / 2


@pytest.mark.parametrize("brief", BRIEFS)
def test_each_kind_of_brief_model_has_a_manifest_that_is_taken(brief, tmp_path):
    text = manifest("brief-1", brief=brief, source=tmp_path if brief == "sourced" else None)
    assert parse_manifest(yaml.safe_load(text)).metadata.name == "brief-1"


def test_a_snapshot_moved_into_a_source_is_one_that_the_source_finds(tmp_path):
    forge = Forge(tmp_path)
    source = forge.source_of("brief-1")
    forge.bring(source)
    (found,) = source.iterdir()
    assert (found / "snapshot.json").is_file()
