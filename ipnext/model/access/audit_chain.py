"""Verification of the audit from exported entries. It trusts neither the server nor the database that exported them."""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Final, Literal

from ipnext.errors import InvalidInput
from ipnext.model.access.audit import GENESIS, AuditAnchor, AuditHead, hash_of
from ipnext.model.value import Value, unique_names

FaultKind = Literal["changed", "removed", "inserted", "reordered", "truncated"]


MOST_FURTHER: Final = 100


class AuditFault(Value):
    """An entry that differs from the written one."""

    kind: FaultKind
    sequence: int
    """The sequence of that entry, or of the first missing one."""
    message: str


class Verification(Value):
    """The result of a verification: the intact entries, from the first one up to the first fault, and the faults."""

    first: int
    last: int
    hash: str
    """The hash of the last intact entry: the anchor of the next verification."""
    entries: int
    anchors: int = 0
    """Anchors that matched an entry."""
    fault: AuditFault | None = None
    further: tuple[AuditFault, ...] = ()
    """Faults after the first one, MOST_FURTHER at most. Entries after a changed entry can still be judged."""


def verify(entries: Iterable[Mapping[str, Any]], *, after: int = 0, anchors: Sequence[AuditHead] = ()) -> Verification:
    """Verify exported entries in their order. Memory does not grow with their number.

    `after`: the export began after this entry. Only an anchor of that sequence vouches for the entries before.
    """
    chain = _Chain(after, anchors)
    following = iter(entries)
    for entry in following:
        fault = chain.add(entry)
        if fault is not None:
            return chain.result(_detect_reorder(fault, following))
    return chain.result(chain.end())


def _detect_reorder(fault: AuditFault, rest: Iterable[Mapping[str, Any]]) -> AuditFault:
    """Return the fault, as a fault of the order if the missing entry comes later."""
    if fault.kind != "removed" or all(entry.get("sequence") != fault.sequence for entry in rest):
        return fault
    return AuditFault(
        kind="reordered", sequence=fault.sequence, message=f"entry {fault.sequence} comes behind later ones"
    )


class _Chain:
    """The state of a verification."""

    def __init__(self, after: int, anchors: Sequence[AuditHead]) -> None:
        self._first, self._sequence = after + 1, after
        self._anchors: dict[int, set[str]] = {}
        for anchor in anchors:
            self._anchors.setdefault(anchor.sequence, set()).add(anchor.hash)
        self._met = 0
        known = self._anchors.get(after, set())
        self._hash: str | None = GENESIS if after == 0 else next(iter(known), None)
        self._whole = AuditHead(sequence=after, hash=self._hash or GENESIS)
        self._faults: list[AuditFault] = []

    def add(self, entry: Mapping[str, Any]) -> AuditFault | None:
        """Add the next entry.

        Return a fault if it is not the following one; the entries after it can't be judged.
        """
        expected = self._sequence + 1
        sequence = entry.get("sequence")
        if not isinstance(sequence, int) or isinstance(sequence, bool):
            return AuditFault(kind="changed", sequence=expected, message=f"entry {expected} has no sequence")
        if sequence != expected:
            return self._order_fault(sequence, expected, entry)
        right = _is_sealed(entry)
        fault = self._check_links(entry, sequence) if right else _not_sealed(sequence)
        self._sequence, self._hash = sequence, str(entry["hash"]) if right else None
        if fault is not None:
            self._note(fault)
        elif not self._faults:
            self._whole = AuditHead(sequence=sequence, hash=str(entry["hash"]))
        return None

    def end(self) -> AuditFault | None:
        """Return the fault if entries of an anchor are missing at the end."""
        last = max(self._anchors, default=0)
        if last <= self._sequence:
            return None
        message = f"the audit ends at entry {self._sequence}; when the anchor was taken it had {last}"
        return AuditFault(kind="truncated", sequence=self._sequence + 1, message=message)

    def result(self, last: AuditFault | None) -> Verification:
        """Return the result; `last` is the fault that ended the verification."""
        if last is not None:
            self._note(last)
        whole = self._whole
        return Verification(
            first=self._first,
            last=whole.sequence,
            hash=whole.hash,
            entries=whole.sequence - self._first + 1,
            anchors=self._met,
            fault=next(iter(self._faults), None),
            further=tuple(self._faults[1:]),
        )

    def _note(self, fault: AuditFault) -> None:
        """Note a fault: one for each entry, up to a fixed number, so that memory does not grow."""
        known = self._faults and self._faults[-1].sequence == fault.sequence
        if not known and len(self._faults) <= MOST_FURTHER:
            self._faults.append(fault)

    def _check_links(self, entry: Mapping[str, Any], sequence: int) -> AuditFault | None:
        """Return the fault of an entry whose hash matches its content."""
        if self._hash is not None and entry.get("prevHash") != self._hash:
            message = f"entry {sequence} was sealed to another entry than the one before it, which was replaced"
            return AuditFault(kind="changed", sequence=max(1, sequence - 1), message=message)
        found, wanted = str(entry["hash"]), self._anchors.get(sequence)
        if wanted is not None and wanted != {found}:
            message = (
                f"entry {sequence} has the hash {found:.16}, the anchor {min(wanted - {found}):.16}: "
                "the audit was written again"
            )
            return AuditFault(kind="changed", sequence=sequence, message=message)
        self._met += wanted is not None
        return None

    def _order_fault(self, sequence: int, expected: int, entry: Mapping[str, Any]) -> AuditFault:
        if sequence < expected:
            same = sequence == self._sequence
            kind: FaultKind = "inserted" if same and entry.get("hash") != self._hash else "reordered"
            message = f"entry {sequence} comes behind entry {self._sequence}"
            return AuditFault(kind=kind, sequence=sequence, message=message)
        missing = f"entry {expected} is" if sequence == expected + 1 else f"entries {expected} to {sequence - 1} are"
        return AuditFault(kind="removed", sequence=expected, message=f"{missing} missing before entry {sequence}")


def _is_sealed(entry: Mapping[str, Any]) -> bool:
    try:
        return bool(entry.get("hash") == hash_of(entry))
    except ValueError:
        return False


def _not_sealed(sequence: int) -> AuditFault:
    message = f"entry {sequence} is not what its hash was made of: it was changed"
    return AuditFault(kind="changed", sequence=sequence, message=message)


def read_entries(lines: Iterable[bytes]) -> Iterator[Mapping[str, Any]]:
    """Yield the entries of JSON lines.

    A line that is no JSON object yields an entry without content, which fails every verification.
    """
    for line in lines:
        if not line.strip():
            continue
        try:
            found = json.loads(line, object_pairs_hook=unique_names)
        except (ValueError, RecursionError):
            found = None
        yield found if isinstance(found, dict) else {}


def read_anchors(text: str) -> tuple[AuditHead, ...]:
    """Return one or more heads, in the form of `ipnext audit head -o json`, one after the other.

    Raises InvalidInput.
    """
    decoder, found, position = json.JSONDecoder(), list[AuditHead](), 0
    try:
        while text[position:].strip():
            position += len(text[position:]) - len(text[position:].lstrip())
            value, position = decoder.raw_decode(text, position)
            found.append(AuditHead(**dict(AuditAnchor.model_validate(value))))
    except (ValueError, RecursionError) as error:
        msg = 'anchor: is not what `ipnext audit head -o json` prints; allowed: {"sequence": NUMBER, "hash": SHA-256}'
        raise InvalidInput(msg, field="anchor") from error
    if not found:
        msg = "anchor: the file is empty; `ipnext audit head -o json` prints one"
        raise InvalidInput(msg, field="anchor")
    return tuple(found)
