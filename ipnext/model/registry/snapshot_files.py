"""The files that a snapshot of each engine may have, by name or pattern, and how many of each.

The set is closed: a manifest costs a few bytes for each further name of one blob, but a name costs its whole size
wherever snapshots are laid out or read. Pattern -> most files, as `fnmatch` reads it; `*` also stands for folders. The
first pattern that fits a path counts.
"""

from collections import Counter
from collections.abc import Mapping
from fnmatch import fnmatchcase
from types import MappingProxyType
from typing import Final, TypeAlias

from ipnext.errors import InvalidInput
from ipnext.model.registry.checking import GOLDEN_FILE
from ipnext.model.registry.delta import DELTA_FILES
from ipnext.model.registry.optimization import REPLAY_FILE, REPORT_FILE
from ipnext.model.registry.registry import SnapshotManifest
from ipnext.names import LIBRARY_FILE

FileSet: TypeAlias = Mapping[str, int]

_ONE = (
    *("program.json", "weights.safetensors", LIBRARY_FILE, "library.json", "compiled.json", *sorted(DELTA_FILES)),
    *(REPLAY_FILE, GOLDEN_FILE, REPORT_FILE),
)

_TEXTS: Final = {"*.txt": 64, "*.md": 32}
"""Notes, licenses and vocabularies."""

ENGINE_FILES: Final[Mapping[str, FileSet]] = MappingProxyType(
    {
        "torch": MappingProxyType({**dict.fromkeys(_ONE, 1), **_TEXTS}),
        "vllm": MappingProxyType(
            {
                "*.safetensors": 2000,
                "*.json": 128,
                "*.jinja": 64,
                **_TEXTS,
                **dict.fromkeys(("*.model", "*.tiktoken", "*.jsonl", "*.yaml", "*.yml"), 16),
            }
        ),
    }
)
"""Of the built-in engines: exports, compiled snapshots, deltas, segments of torch; checkpoints, adapters of vLLM."""

OTHER_FILES: Final[FileSet] = MappingProxyType({"*": 64})
"""Of an engine whose distribution names no set (entry points of the group `ipnext.snapshot_files`)."""


def check_files(manifest: SnapshotManifest, allowed: FileSet) -> None:
    """Raise InvalidInput for the first file that the engine's set does not have, or has fewer of."""
    shown = tuple(pattern if most == 1 else f"{most} of {pattern}" for pattern, most in allowed.items())
    found = Counter[str]()
    for file in manifest.files:
        pattern = next((each for each in allowed if fnmatchcase(file.path, each)), None)
        fault = None
        if pattern is None:
            fault = "is no file of such a snapshot"
        elif found[pattern] == allowed[pattern]:
            fault = f"is one file of {pattern} too many"
        if fault is not None:
            msg = f"files.path: {file.path!r} {fault}; allowed for engine {manifest.engine!r}: {', '.join(shown)}"
            raise InvalidInput(msg, field="files.path", value=file.path, allowed=shown)
        found[pattern or ""] += 1
