"""The audit's chain without a database: its canonical form, and what a verification finds of a tampered export."""

import hashlib
import json
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ipnext.errors import InvalidInput
from ipnext.model.access.audit import (
    GENESIS,
    LONGEST_DOCUMENT,
    REDACTED,
    AuditEntry,
    AuditHead,
    AuditObject,
    AuditWho,
    document_text,
    hash_of,
    seal,
)
from ipnext.model.access.audit_chain import MOST_FURTHER, read_anchors, read_entries, verify

NOW = datetime(2026, 11, 28, 12, tzinfo=UTC)
WHO = AuditWho(kind="key", id="abcdefghijklmnop", name="deployer")


def entry_after(head, **fields):
    own = {
        "who": WHO,
        "action": "models.publish",
        "object": AuditObject(kind="Model", name="ranker"),
        "outcome": "done",
    }
    given = {"sequence": head.sequence + 1, "at": NOW + timedelta(seconds=head.sequence), "request_id": "r", **own}
    return seal(AuditEntry(**given | fields, prev_hash=head.hash, hash=GENESIS))


def chain(count):
    """Exported entries."""
    head, found = AuditHead(sequence=0, hash=GENESIS), []
    for number in range(count):
        entry = entry_after(head, reason=f"reason {number}")
        head = AuditHead(sequence=entry.sequence, hash=entry.hash)
        found.append(entry.plain())
    return found


def anchor(entries, sequence):
    return AuditHead(sequence=sequence, hash=entries[sequence - 1]["hash"])


def resealed(entry, **changed):
    """An entry with another content and the hash of that: what somebody does who knows how entries are sealed."""
    made = entry | changed
    return made | {"hash": hash_of(made)}


def lines(entries):
    return [json.dumps(entry).encode() + b"\n" for entry in entries]


def found(entries, **options):
    fault = verify(entries, **options).fault
    return None if fault is None else (fault.kind, fault.sequence)


def test_a_whole_chain_is_verified_and_its_end_is_the_next_anchor():
    entries = chain(5)
    result = verify(entries, anchors=(anchor(entries, 2), anchor(entries, 5)))
    assert (result.first, result.last, result.entries, result.anchors, result.fault) == (1, 5, 5, 2, None)
    assert result.hash == entries[-1]["hash"]
    assert verify([]).fault is None


@pytest.mark.parametrize("name", [name for name in chain(1)[0] if name not in {"sequence", "prevHash"}])
@pytest.mark.parametrize("place", [1, 3, 5])
def test_a_changed_field_is_found_at_its_entry(name, place):
    entries = chain(5)
    entries[place - 1][name] = {"kind": "key", "id": "x", "name": "y"} if name == "who" else "changed"
    assert found(entries) == ("changed", place)


def test_what_is_behind_a_changed_entry_is_judged_too():
    entries = chain(9)
    entries[1]["outcome"] = "nothing"
    entries[4] = resealed(entries[4], reason="another one")
    entries[6]["hash"] = "f" * 64
    result = verify(entries)
    assert (result.last, result.entries) == (1, 1)
    assert [(fault.kind, fault.sequence) for fault in (result.fault, *result.further)] == [
        ("changed", 2),
        ("changed", 5),
        ("changed", 7),
    ]
    del entries[7]
    assert [fault.kind for fault in verify(entries).further] == ["changed", "changed", "removed"]


def test_faults_without_number_are_told_up_to_a_limit():
    spoilt = [entry | {"outcome": "x"} for entry in chain(MOST_FURTHER + 20)]
    assert len(verify(spoilt).further) == MOST_FURTHER


@pytest.mark.parametrize("name", ["reason", "hash", "prevHash", "action"])
def test_a_field_that_was_taken_away_is_found_at_its_entry(name):
    entries = chain(5)
    del entries[2][name]
    assert found(entries) == ("changed", 3)


def test_a_field_that_was_added_is_found_at_its_entry():
    entries = chain(5)
    entries[2]["approved"] = True
    assert found(entries) == ("changed", 3)


def test_a_changed_entry_with_a_hash_of_its_own_is_found_by_the_entry_behind_it():
    entries = chain(5)
    entries[2] = resealed(entries[2], reason="another one")
    assert found(entries) == ("changed", 3)


@pytest.mark.parametrize("place", [1, 3, 4])
def test_a_removed_entry_is_found_at_its_place(place):
    entries = chain(5)
    del entries[place - 1]
    assert found(entries) == ("removed", place)


def test_entries_that_were_removed_and_numbered_again_are_found_at_the_first():
    entries = chain(5)
    del entries[1]
    numbered = [resealed(entry, sequence=number) for number, entry in enumerate(entries, 1)]
    assert found(numbered) == ("changed", 1)


def test_an_inserted_entry_is_found_at_its_place():
    entries = chain(5)
    entries.insert(3, resealed(entries[2], reason="never happened"))
    assert found(entries) == ("inserted", 3)


@pytest.mark.parametrize(("one", "other"), [(1, 2), (2, 4), (1, 5)])
def test_entries_that_changed_places_are_found_at_the_first_of_them(one, other):
    entries = chain(5)
    entries[one - 1], entries[other - 1] = entries[other - 1], entries[one - 1]
    assert found(entries) == ("reordered", one)


def test_contents_that_changed_places_are_found_at_the_first_of_them():
    entries = chain(5)
    a, b = entries[1], entries[3]
    entries[1], entries[3] = b | {"sequence": 2}, a | {"sequence": 4}
    assert found(entries) == ("changed", 2)


def test_a_tail_that_was_cut_off_is_found_by_an_anchor_only():
    entries = chain(5)
    assert found(entries[:3]) is None
    assert found(entries[:3], anchors=(anchor(entries, 5),)) == ("truncated", 4)
    assert found([], anchors=(anchor(entries, 5),)) == ("truncated", 1)


def test_a_chain_that_was_made_again_is_found_by_an_anchor_only():
    entries = chain(5)
    other = chain(2)
    head = anchor(other, 2)
    for _ in range(3):
        entry = entry_after(head, reason="written again")
        head = AuditHead(sequence=entry.sequence, hash=entry.hash)
        other.append(entry.plain())
    assert found(other) is None
    assert found(other, anchors=(anchor(entries, 4),)) == ("changed", 4)
    assert found(other, anchors=(anchor(entries, 2),)) is None, "taken before it was made again"


def test_a_part_of_the_chain_is_tied_to_the_rest_by_an_anchor():
    entries = chain(5)
    assert found(entries[2:]) == ("removed", 1)
    assert found(entries[2:], after=2) is None
    result = verify(entries[2:], after=2, anchors=(anchor(entries, 2),))
    assert (result.first, result.last, result.fault) == (3, 5, None)
    strange = AuditHead(sequence=2, hash="f" * 64)
    assert found(entries[2:], after=2, anchors=(strange,)) == ("changed", 2)


@pytest.mark.parametrize(
    "line", [b"no JSON", b"[]", b"17", b"\xff", b"[" * 100_000, b'{"sequence": true}', b'{"sequence": NaN}']
)
def test_a_line_that_is_no_entry_is_found_at_its_place(line):
    spoilt = lines(chain(3))
    spoilt[1] = line + b"\n"
    assert found(read_entries(spoilt)) == ("changed", 2)


def test_a_name_that_is_given_twice_is_found_although_the_last_one_is_right():
    spoilt = lines(chain(3))
    spoilt[1] = spoilt[1].replace(b'"outcome"', b'"outcome": "refused", "outcome"', 1)
    assert found(read_entries(spoilt)) == ("changed", 2)


def test_lines_may_be_written_in_another_form():
    assert found(read_entries([b"\n", *(json.dumps(e, sort_keys=True).encode() for e in chain(3))])) is None


def test_anchors_are_read_as_they_were_printed_one_behind_the_other():
    first, second = AuditHead(sequence=1, hash="a" * 64), AuditHead(sequence=2, hash="b" * 64)
    printed = "".join(json.dumps(head.model_dump(), indent=2) + "\n" for head in (first, second))
    assert read_anchors(printed) == (first, second)
    for wrong in ("", "x", '{"sequence": 1}', '{"sequence": 1, "hash": "short"}', "[" * 3000):
        with pytest.raises(InvalidInput, match="anchor: "):
            read_anchors(wrong)


def jcs(value):
    """RFC 8785 of what entries hold (objects, strings, whole numbers), written without the json module."""
    if isinstance(value, dict):
        ordered = sorted(value.items(), key=lambda item: item[0].encode("utf-16-be"))
        return "{" + ",".join(f"{jcs(name)}:{jcs(each)}" for name, each in ordered) + "}"
    if isinstance(value, int):
        return str(value)
    short = {8: "\\b", 9: "\\t", 10: "\\n", 12: "\\f", 13: "\\r", 34: '\\"', 92: "\\\\"}
    letters = (short.get(ord(c)) or (f"\\u{ord(c):04x}" if ord(c) < 32 else c) for c in value)
    return '"' + "".join(letters) + '"'


TEXT = st.text(st.characters(exclude_categories=("Cs",)), max_size=30)


@given(
    reason=st.none() | TEXT,
    name=TEXT,
    left_out=st.none() | st.integers(1, 2**53 - 1),
    at=st.datetimes(datetime(2000, 1, 1), datetime(2200, 1, 1)),  # noqa: DTZ001 - the zone follows
    after=st.none() | st.dictionaries(TEXT, TEXT | st.integers() | st.floats(allow_nan=False, allow_infinity=False)),
)
def test_the_canonical_form_is_that_of_rfc_8785_and_survives_an_export(reason, name, left_out, at, after):
    fields = {"reason": reason, "left_out": left_out, "at": at.replace(tzinfo=UTC), "after": document_text(after)}
    entry = entry_after(AuditHead(sequence=0, hash=GENESIS), who=WHO.model_copy(update={"name": name}), **fields)
    plain = entry.plain()
    assert entry.hash == hashlib.sha256(jcs({k: v for k, v in plain.items() if k != "hash"}).encode()).hexdigest()
    assert found(read_entries(lines([plain]))) is None
    assert AuditEntry.model_validate(plain).plain() == plain


def test_a_time_is_written_with_six_digits_whatever_they_are():
    entry = entry_after(AuditHead(sequence=0, hash=GENESIS), at=datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC))
    assert entry.plain()["at"] == "2026-01-02T03:04:05.000000Z"


def test_a_large_document_is_held_by_its_digest():
    small = {"text": "x" * (LONGEST_DOCUMENT - len('{"text":""}'))}
    text = document_text(small)
    assert text is not None
    assert json.loads(text) == small
    large = {"text": small["text"] + "x"}
    digest = hashlib.sha256(json.dumps(large, separators=(",", ":")).encode()).hexdigest()
    assert document_text(large) == f"sha256:{digest}"


def test_a_document_holds_no_secret():
    document = {
        "environment": {"HF_TOKEN": "hf_abc", "LEVEL": "1"},
        "list": [{"apiKey": "k", "api_keys": "k", "passphrase": "p"}],
        "uri": "s3://id:pass@host/x",
        "maxTokens": 512,
        "tokens": 5,
    }
    text = document_text(document)
    assert text is not None
    assert json.loads(text) == {
        "environment": {"HF_TOKEN": REDACTED, "LEVEL": "1"},
        "list": [{"apiKey": REDACTED, "api_keys": REDACTED, "passphrase": REDACTED}],
        "uri": f"s3://{REDACTED}@host/x",
        "maxTokens": 512,
        "tokens": 5,
    }
