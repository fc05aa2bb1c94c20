"""Makes a compiled snapshot from a snapshot.

Called by the command `ipnext compile` and by the optimization of a publish.
"""

import math
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Final

from ipnext import __version__
from ipnext.errors import InvalidInput, IPnextError, UnsupportedModel
from ipnext.model.registry.registry import SNAPSHOT_FILE, ArtifactFile, SnapshotManifest
from ipnext.model.value import canonical_json
from ipnext.names import COMPILE_SETTING, LIBRARY_FILE
from serving.compiling.accuracy import measure_differences
from serving.compiling.compiler import compiler_version
from serving.compiling.cpu_levels import level_for, needed_flags
from serving.compiling.library_cache import Recipe, build_library, default_cache, torch_version
from serving.compiling.report import CompileReport, is_within
from serving.engines.base import LoadedPart
from serving.engines.torch.compiled import CALLS_FILE, COMPILED_FILE, CompiledDocument, LibraryDeviation
from serving.engines.torch.cpu_flags import machine_flags
from serving.engines.torch.engine import TorchEngine
from serving.engines.torch.guards import GUARDED
from serving.engines.torch.program import PROGRAM_FILE, WEIGHTS_FILE, read_document
from serving.snapshots.directory import artifact_file, check_directory, write_last
from serving.splitting.check.comparison import Drawn
from serving.splitting.check.ranges import ranges_of
from serving.splitting.check.sample_requests import Examples, Request, RequestSampler
from serving.splitting.split import read_manifest, read_split_program

TOLERANCE: Final = 1e-5
"""Default tolerance, relative to an output's largest figure: thirty times the observed deviation of reordered FP32
sums."""


def compile_snapshot(
    directory: Path,
    out: Path,
    *,
    tolerance: float = TOLERANCE,
    cpu: str | None = None,
    examples: Path | None = None,
    cache: Path | None = None,
) -> CompileReport:
    """Write the snapshot in `directory` with a library of its program to `out`, which must not exist or be empty.

    `out` is written only if the library's answers at batch 1, 2, 64 and 257 are within `tolerance` of the eager
    engine's; the report has the differences. `cpu` is a level such as `x86-64-v3` (default: this machine's). `examples`
    is a safetensors file of named inputs to draw the requests from. InvalidInput, or UnsupportedModel if the program
    cannot be compiled.
    """
    _check_tolerance(tolerance)
    source = read_manifest(directory)
    check_directory(out)
    began = time.monotonic()
    recipe = _recipe(source, cpu)
    library, known = build_library(recipe, directory, cache or default_cache())
    seconds = time.monotonic() - began
    with _draft(out) as draft:
        about = _write_files(directory, source, library, draft, recipe, tolerance, examples)
        is_near = is_within(about.differences, tolerance)
        manifest = _finish_snapshot(draft, source, about, out) if is_near else None
    return CompileReport(
        snapshot=source.digest,
        compiled=manifest and manifest.digest,
        library_bytes=(library / LIBRARY_FILE).stat().st_size,
        library_known=known,
        seconds=seconds,
        **about.model_dump(include={"torch", "compiler", "level", "flags", "tolerance", "differences"}),
    )


def write_compiled(directory: Path, draft: Path, *, tolerance: float, cpu: str) -> CompiledDocument:
    """Write the files of the compiled snapshot of `directory`, all but its manifest, into the directory `draft`.

    Nothing is taken from a cache. InvalidInput if answers differ by more than the tolerance, if the program cannot be
    compiled, or if it has operators whose arguments hosts check on each call: a library would not.
    """
    source = read_manifest(directory)
    _refuse_guarded(directory)
    recipe = _recipe(source, cpu)
    with tempfile.TemporaryDirectory(prefix="ipnext-library-") as cache:
        try:
            library, _ = build_library(recipe, directory, Path(cache))
        except UnsupportedModel as error:
            msg = f"compile: {error.message}"
            raise InvalidInput(msg, field="compile") from error
        about = _write_files(directory, source, library, draft, recipe, tolerance, None)
    if not is_within(about.differences, tolerance):
        worst = max(difference.relative for difference in about.differences)
        msg = f"compile.tolerance: answers differ by {worst:.2g} of the largest figure; allowed: {tolerance:g}"
        raise InvalidInput(msg, field="compile.tolerance", value=tolerance)
    return about


def _refuse_guarded(directory: Path) -> None:
    nodes = read_document(directory / PROGRAM_FILE)["program"]["graph_module"]["graph"]["nodes"]
    guarded = {f"torch.ops.{operator}" for operator in GUARDED}
    if found := sorted({node["target"] for node in nodes} & guarded):
        msg = f"compile: {found[0]} is checked by hosts on each call, which a library would not do; leave the step out"
        raise InvalidInput(msg, field="compile", value=found[0])


def _write_files(  # noqa: PLR0913, PLR0917 - what makes up a compiled snapshot
    directory: Path,
    source: SnapshotManifest,
    library: Path,
    draft: Path,
    recipe: Recipe,
    tolerance: float,
    examples: Path | None,
) -> CompiledDocument:
    """Write program, weights, library and what is known of it, its differences included."""
    _assemble(directory, library, draft)
    _write_about(draft, recipe, tolerance, ())
    return _write_about(draft, recipe, tolerance, _differences(directory, draft, source, examples))


def _check_tolerance(tolerance: float) -> None:
    if not (math.isfinite(tolerance) and tolerance >= 0):
        msg = f"tolerance: must be a number >= 0, got {tolerance!r}"
        raise InvalidInput(msg, field="tolerance", value=tolerance)


def _recipe(source: SnapshotManifest, cpu: str | None) -> Recipe:
    flags = machine_flags()
    level = level_for(flags, cpu)
    program = next(file.sha256 for file in source.files if file.path == PROGRAM_FILE)
    return Recipe(program, level, needed_flags(level, flags), torch_version(), compiler_version())


@contextmanager
def _draft(out: Path) -> Iterator[Path]:
    """Yield a directory next to `out`, so that it can be renamed; it is removed at the end unless renamed."""
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{out.name}.", dir=out.parent, ignore_cleanup_errors=True) as place:
        draft = Path(place) / "compiled"
        draft.mkdir()
        yield draft


def _assemble(source: Path, library: Path, draft: Path) -> None:
    for name in (PROGRAM_FILE, WEIGHTS_FILE):
        shutil.copyfile(source / name, draft / name)
    for name in (LIBRARY_FILE, CALLS_FILE):
        if (library / name).exists():
            shutil.copyfile(library / name, draft / name)


def _write_about(
    draft: Path, recipe: Recipe, tolerance: float, found: tuple[LibraryDeviation, ...]
) -> CompiledDocument:
    about = CompiledDocument(
        program=recipe.program,
        torch=recipe.torch,
        compiler=recipe.compiler,
        level=recipe.level,
        flags=recipe.flags,
        tolerance=tolerance,
        differences=found,
    )
    (draft / COMPILED_FILE).write_text(canonical_json(about))
    return about


def _differences(
    directory: Path, draft: Path, source: SnapshotManifest, examples: Path | None
) -> tuple[LibraryDeviation, ...]:
    engine = TorchEngine(trusts_libraries=True)  # the library was made by this process
    eager = engine.load(directory, source, {})
    whole = source.model_copy(update={"files": _files(draft)})
    compiled = engine.load(draft, whole, {COMPILE_SETTING: True})
    drawn: Drawn = (
        Examples(eager.signature, examples)
        if examples is not None
        else RequestSampler(eager.signature, ranges_of(read_split_program(directory)), partial(_answers, eager))
    )
    return measure_differences(eager, compiled, drawn)


def _answers(part: LoadedPart, request: Request) -> bool:
    """Whether the snapshot accepts a request; it refuses indices out of range."""
    try:
        part.infer({name: tensor.data for name, tensor in request.items()})
    except IPnextError:
        return False
    return True


def _files(draft: Path) -> tuple[ArtifactFile, ...]:
    names = (PROGRAM_FILE, WEIGHTS_FILE, LIBRARY_FILE, CALLS_FILE, COMPILED_FILE)
    return tuple(artifact_file(draft / name) for name in names if (draft / name).exists())


def _finish_snapshot(draft: Path, source: SnapshotManifest, about: CompiledDocument, out: Path) -> SnapshotManifest:
    worst = max((d.relative for d in about.differences), default=0.0)
    manifest = SnapshotManifest(
        engine=source.engine,
        signature=source.signature,
        files=_files(draft),
        producer={
            "ipnext": __version__,
            "torch": about.torch,
            "compiler": about.compiler,
            "cpu": about.level,
            "tolerance": f"{about.tolerance:g}",
            "difference": f"{worst:.2e}",
        },
        parent=source.digest,
    )
    write_last(draft / SNAPSHOT_FILE, canonical_json(manifest))
    draft.chmod(0o755)
    draft.rename(check_directory(out))
    return manifest
