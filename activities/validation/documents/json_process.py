"""Judges whether the `.json` files of a snapshot are JSON; large ones in a process of its own.

Called by the validator `safe-formats`. Python's parser lets no other thread of the worker run until it is done, and its
objects take thirty times their text. The process reads a document from its standard input and has no rights beside; it
dies with its parent.
"""

import gc
import json
import os
import signal
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import BinaryIO, Final

from activities.runtime.child_process import ChildFiles, begin_child, child_environment, confine_child, run_child
from ipnext.artifacts.bounded_json import count_separators, load_bounded
from ipnext.artifacts.layout import CHUNK_BYTES
from ipnext.errors import EXIT_OK, Unavailable
from ipnext.model.echoes import cut_text
from serving.confinement.landlock import Confinement

LARGEST_JSON_BYTES: Final = 64 << 20
"""Of a `.json` file; a larger one is not parsed, and therefore not accepted."""
MOST_SEPARATORS: Final = 3_000_000
"""Commas and opening brackets of a `.json` file; a tokenizer of 250,000 words and 500,000 merges has two million."""
MOST_JSON_BYTES: Final = 256 << 20
"""Of the `.json` files of a snapshot together."""
MOST_SEPARATORS_TOGETHER: Final = 6_000_000
"""Of the `.json` files of a snapshot together."""
WORKER_BYTES: Final = 1 << 20
"""A document up to this size and of WORKER_SEPARATORS is parsed in the worker: that takes some hundredths of a
second."""
WORKER_SEPARATORS: Final = 100_000
LARGEST_ANSWER_BYTES: Final = 1 << 16
_MESSAGE_CHARACTERS: Final = 1000
MODULE: Final = "activities.validation.documents.json_process"


class JsonFiles:
    """The `.json` files of one snapshot: each is judged once, and all together are bounded."""

    def __init__(self, confinement: Confinement = Confinement.AVAILABLE) -> None:
        self._confinement = confinement
        self._bytes = self._separators = 0

    def find_fault(self, start: bytes, stream: BinaryIO, size_bytes: int) -> str:
        """Return why a file of this size is refused; empty if it is JSON. `stream` has what follows its `start`.

        Unavailable if the process that parses it ended: a further try may succeed.
        """
        self._bytes += size_bytes
        if self._bytes > MOST_JSON_BYTES:
            return f"is JSON, with which the snapshot has {self._bytes} bytes of it; allowed: {MOST_JSON_BYTES}"
        if size_bytes > WORKER_BYTES:
            return self._find_in_process(_pieces(start, stream, size_bytes))
        content = b"".join(_pieces(start, stream, size_bytes))
        if count_separators(content) > WORKER_SEPARATORS:
            return self._find_in_process(iter([content]))
        return self._too_many(count_separators(content)) or json_fault(content)

    def _find_in_process(self, pieces: Iterator[bytes]) -> str:
        with tempfile.TemporaryDirectory(prefix="ipnext-json-") as name:
            workspace = Path(name)
            document, separators = workspace / "document", 0
            with document.open("wb") as file:
                for piece in pieces:
                    separators += count_separators(piece)
                    file.write(piece)
            if fault := self._too_many(separators):
                return fault
            files = ChildFiles(workspace / "answer", workspace / "errors", document)
            status = run_child(
                [
                    sys.executable,
                    "-m",
                    "activities.validation.documents.json_process",
                    str(os.getpid()),
                    self._confinement,
                ],
                files,
                lambda _: None,
                environment=child_environment(dict.fromkeys(("HOME", "TMPDIR"), name)),
            )
            return judge_end(status, _read(files.answer), _read(files.errors))

    def _too_many(self, separators: int) -> str:
        if separators > MOST_SEPARATORS:
            return f"is JSON with {separators} commas and brackets; allowed: {MOST_SEPARATORS}"
        self._separators += separators
        if self._separators <= MOST_SEPARATORS_TOGETHER:
            return ""
        return (
            f"is JSON, with which the snapshot has {self._separators} commas and brackets in such files; "
            f"allowed: {MOST_SEPARATORS_TOGETHER}"
        )


def json_fault(content: bytes) -> str:
    """Return why a document is no JSON; empty if it is."""
    try:
        load_bounded(content, most_separators=MOST_SEPARATORS)
    except (ValueError, RecursionError) as error:
        return f"is not JSON: {error}"
    return ""


def judge_end(status: int, answer: str, errors: str) -> str:
    """Return the answer of the process. Unavailable if it has none: a document within the limits ends no process."""
    if status == EXIT_OK and answer:
        return str(json.loads(answer))
    how = f"by {signal.Signals(-status).name}" if status < 0 else f"with status {status}"
    told = errors.strip().splitlines()
    last = cut_text(told[-1] if told else "it said nothing", _MESSAGE_CHARACTERS)
    msg = f"the process that parses JSON ended {how}: {last}"
    raise Unavailable(msg)


def _pieces(start: bytes, stream: BinaryIO, size_bytes: int) -> Iterator[bytes]:
    """Yield the content of a file, no more than its manifest says."""
    yield start
    left = size_bytes - len(start)
    while left > 0 and (piece := stream.read(min(left, CHUNK_BYTES))):
        left -= len(piece)
        yield piece


def _read(file: Path) -> str:
    with file.open("rb") as stream:
        return stream.read(LARGEST_ANSWER_BYTES).decode("utf-8", "replace")


def main(arguments: Sequence[str]) -> None:
    """Judge the document of standard input, confined; end with the parent."""
    parent, confinement = arguments
    begin_child(int(parent))
    confine_child(Confinement(confinement))
    gc.disable()  # it would look through all objects again and again
    sys.stdout.write(json.dumps(json_fault(sys.stdin.buffer.read())))


if __name__ == "__main__":
    main(sys.argv[1:])
