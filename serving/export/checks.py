"""Refusals of export: the user's file and line, the reason and a hint."""

import inspect
import io
import logging
import re
import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, redirect_stderr
from pathlib import Path
from typing import Any, Final

import torch
from torch import nn

import serving
from ipnext.errors import UnsupportedModel
from serving.engines.torch.program import read_program
from serving.engines.torch.program_cache import TorchProgram

_FRAME = re.compile(r'File "([^"]+)", line (\d+)')
_TORCH: Final = str(Path(torch.__file__).parent)
_HERE: Final = str(Path(serving.__file__).parent)
_HINTS: Final = (
    (
        re.compile(r"specialized it to be a constant|Constraints violated"),
        (
            "the code fixes the batch size (a Python loop over the batch, int(x.shape[0]), or a view with a number in "
            "place of the batch); use tensor operations over dimension 0"
        ),
    ),
    (
        re.compile(r"data-dependent|Data-dependent|item\(\)|tolist"),
        (
            "the code decides by a tensor's value; use torch.where, masks or torch.clamp in place of Python's if and "
            "int(tensor)"
        ),
    ),
    (re.compile(r"numpy"), "the code leaves torch; use torch operations in place of numpy"),
)


def unsupported_error(module: nn.Module, *reasons: Exception | str, hint: str | None = None) -> UnsupportedModel:
    """Return the error for a module that cannot be exported, with the user's line if it can be determined."""
    texts = [str(reason) for reason in reasons]
    advice = hint or next((words for pattern, words in _HINTS for text in texts if pattern.search(text)), None)
    place = _user_line(module, reasons)
    summary = next((line.strip(" -") for line in texts[0].splitlines() if line.strip()), "it cannot be exported")
    msg = f"{place}: {type(module).__name__} cannot be exported: {summary}"
    return UnsupportedModel(f"{msg}. Hint: {advice}" if advice else msg, field="module", value=place)


@contextmanager
def quiet_tracer() -> Iterator[None]:
    """Keep torch's dumps of a failed trace off standard error: the refusal has the information that the user needs."""
    handlers = logging.getLogger("torch").handlers
    for handler in handlers:
        handler.addFilter(_silent)
    try:
        with redirect_stderr(io.StringIO()):
            yield
    finally:
        for handler in handlers:
            handler.removeFilter(_silent)


def _silent(_: logging.LogRecord) -> bool:
    return False


def name_outputs(answer: Any) -> dict[str, Any]:
    """Name a module's answers: `output` for one tensor, a mapping's own keys, `output_0`, ... for a sequence."""
    if isinstance(answer, Mapping):
        return dict(answer)
    if isinstance(answer, tuple | list):
        return {f"output_{index}": value for index, value in enumerate(answer)}
    return {"output": answer}


def check_answers(module: nn.Module, directory: Path, examples: Mapping[str, torch.Tensor]) -> None:
    """Raise UnsupportedModel if the written program answers differently from the module (last bits aside).

    They are compared at batch 1, n, n + 1.

    The module runs without torch's fused attention, which exists in eager mode only and differs in last bits. A program
    that changes its weights or inputs is refused too: requests must not affect each other.
    """
    program = read_program(directory)
    size = len(next(iter(examples.values())))
    ranks: set[tuple[int, ...]] = set()
    for rows in ([0], list(range(size)), [*range(size), 0]):
        inputs = {name: examples[name][rows] for name in program.inputs}
        with _plain_attention():
            expected = name_outputs(module(**{name: tensor.clone() for name, tensor in inputs.items()}))
        got = _run_unchanging(module, program, inputs)
        ranks.add(tuple(tensor.dim() for tensor in got))
        for name, tensor in zip(program.outputs, got, strict=True):
            if not _same(expected[name], tensor):
                raise _differs(module, f"at batch {len(rows)} output {name!r} differs from the module's own")
    if len(ranks) > 1:
        raise _differs(module, "an output has fewer dimensions at batch 1 (squeeze() without a dimension)")


def _differs(module: nn.Module, reason: str) -> UnsupportedModel:
    hint = "forward must be deterministic and treat every batch size alike (no random numbers, no branch on its size)"
    return unsupported_error(module, reason, hint=hint)


@contextmanager
def _plain_attention() -> Iterator[None]:
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(before)


def _run_unchanging(
    module: nn.Module, program: TorchProgram, inputs: Mapping[str, torch.Tensor]
) -> tuple[torch.Tensor, ...]:
    watched = [*inputs.values(), *(a for a in program.arguments if isinstance(a, torch.Tensor))]
    before = [tensor._version for tensor in watched]  # noqa: SLF001  # counts writes; torch has no public name for it
    got = program.run(list(inputs.values()))
    if before != [tensor._version for tensor in watched]:  # noqa: SLF001  # as above
        raise unsupported_error(
            module,
            "forward changes a buffer or an input in place",
            hint="compute a new tensor instead; a served module keeps no state between requests",
        )
    return got


def _same(left: torch.Tensor, right: torch.Tensor) -> bool:
    if left.shape != right.shape or left.dtype != right.dtype:
        return False
    if not left.is_floating_point():
        return torch.equal(left, right)
    digits = LAST_BITS * torch.finfo(left.dtype).eps
    largest = float(left.nan_to_num(0.0, 0.0, 0.0).abs().max()) if left.numel() else 0.0
    return torch.allclose(left, right, rtol=0, atol=digits * largest, equal_nan=True)


LAST_BITS = 8
"""Tolerance in last bits of an answer's largest figure: some processors sum with another kernel if the input is aligned
differently."""


def _user_line(module: nn.Module, reasons: tuple[Exception | str, ...]) -> str:
    for reason in reasons:
        for file, line in reversed(_frames(reason)):
            if not file.startswith((_TORCH, _HERE, "<")) and file in _files(module):
                return f"{file}:{line}"
    return _definition(module)


def _frames(reason: Exception | str) -> list[tuple[str, int]]:
    traced = [] if isinstance(reason, str) else traceback.extract_tb(reason.__traceback__)
    quoted = [(file, int(line)) for file, line in _FRAME.findall(str(reason))]
    return [*quoted, *((frame.filename, frame.lineno or 0) for frame in traced)]


def _files(module: nn.Module) -> frozenset[str]:
    return frozenset(file for child in module.modules() if (file := _source_file(type(child))) is not None)


def _source_file(kind: type) -> str | None:
    try:
        return inspect.getsourcefile(kind)
    except TypeError:
        return None


def _definition(module: nn.Module) -> str:
    file = _source_file(type(module))
    try:
        _, line = inspect.getsourcelines(type(module).forward)
    except (OSError, TypeError):
        return file or type(module).__qualname__
    return f"{file}:{line}"
