"""A separate process that compiles one program: `python -m serving.compiling.worker SNAPSHOT OUT LEVEL`.

It reads the program and the sizes of the weights, never their values: each weight is zeros here, so that no library can
contain one. Exit status 1 with `error: ...` as the last line of standard error.
"""

import sys
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import torch
from safetensors import safe_open
from torch._inductor import cpu_vec_isa

from ipnext.names import LIBRARY_FILE
from serving.compiling.cpu_levels import LEVELS
from serving.engines.torch.compiled import CALLS_FILE
from serving.engines.torch.program import PROGRAM_FILE, WEIGHTS_FILE, read_document, rebuild


class LevelAVX512(cpu_vec_isa.VecAVX512):
    """AVX-512 as the level has it.

    torch adds the instructions for bfloat16 if the compiling machine has them; not every machine of the level does.
    """

    def __bool__(self) -> bool:  # type: ignore[override]  # torch declares a cache
        return True

    def build_arch_flags(self) -> str:
        """Return the compiler's flags."""
        return self._arch_flags


_VECTORS: Final[Mapping[str, type[cpu_vec_isa.VecISA]]] = {
    "x86-64-v4": LevelAVX512,
    "x86-64-v3": cpu_vec_isa.VecAVX2,
}
_EXAMPLE_ROWS: Final = 3
OPTIONS: Final[Mapping[str, Any]] = {
    "aot_inductor.package_constants_in_so": False,
    "always_keep_tensor_constants": True,
    "joint_graph_constant_folding": False,
    "cpp.threads": 1,
    "compile_threads": 1,
    "aot_inductor.precompile_headers": False,
    "aot_inductor.enable_line_tables": False,
}
"""Options of `torch._inductor.config`.

The second and third keep small weights from being inlined in the code as numbers. With one thread a kernel has no
parallel region, which an error for an invalid index could not be thrown out of.
"""


def main(arguments: list[str]) -> int:
    """Compile, and write the library into the directory OUT."""
    snapshot, out, level = Path(arguments[0]), Path(arguments[1]), arguments[2]
    torch.set_num_threads(1)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            compile_program(snapshot, out, level)
    except Exception as error:  # noqa: BLE001  # the edge of a process; compilers raise anything
        line = next((text for text in str(error).splitlines() if text.strip()), type(error).__name__)
        print(f"error: {line.strip()}", file=sys.stderr)  # noqa: T201  # read by the caller
        return 1
    return 0


def compile_program(snapshot: Path, out: Path, level: str) -> None:
    """Write `library.so`, and `library.json` if the library calls operators by name, into `out`."""
    document = _with_weights_as_state(read_document(snapshot / PROGRAM_FILE))
    exported = rebuild(document, _blank(snapshot, document))
    values = {node.name: node.meta["val"] for node in exported.graph.nodes if node.op == "placeholder"}
    examples = {name: _example(values[name]) for name in document["inputs"]}
    options = {**OPTIONS, "aot_inductor.output_path": str(out / LIBRARY_FILE)}
    if level in LEVELS:
        vectors = _VECTORS[level]()
        cpu_vec_isa.valid_vec_isa_list = lambda: [vectors]  # type: ignore[assignment]  # no setting chooses among equal widths
        options |= {"cpp.march": level, "cpp.vec_isa_ok": True}  # this machine has the level: torch need not try it
    torch._inductor.aot_compile(exported.module(check_guards=False), (), examples, options=options)  # noqa: SLF001  # no public module
    for calls in out.glob("*.wrapper.json"):
        calls.rename(out / CALLS_FILE)


def _with_weights_as_state(document: dict[str, Any]) -> dict[str, Any]:
    """Turn constants and non-persistent buffers into buffers of the state: a compiler may fold constants."""
    for spec in document["program"]["graph_module"]["signature"]["input_specs"]:
        constant = spec.pop("tensor_constant", None)
        if constant is not None:
            name = constant["tensor_constant_name"]
            spec["buffer"] = {"arg": constant["arg"], "buffer_name": name}
        if spec.get("buffer") is not None:
            spec["buffer"]["persistent"] = True
    return document


def _blank(snapshot: Path, document: Mapping[str, Any]) -> dict[str, torch.Tensor]:
    """Return zeros in the layout of the weights; unwritten memory is not allocated."""
    blank: dict[str, torch.Tensor] = {}
    with safe_open(snapshot / WEIGHTS_FILE, framework="pt") as weights:
        for place, where in document["tensors"].items():
            path = place.partition(":")[2]
            blank[f"state:{path}"] = _zeros(weights.get_tensor(where["key"]), where["strides"])
    return blank


def _zeros(like: torch.Tensor, strides: Sequence[int] | None) -> torch.Tensor:
    if strides is None:
        return torch.zeros(like.shape, dtype=like.dtype)
    return torch.empty_strided(like.shape, strides, dtype=like.dtype).zero_()


def _example(value: torch.Tensor) -> torch.Tensor:
    sizes = [size if isinstance(size, int) else _EXAMPLE_ROWS for size in value.shape]
    return torch.zeros(sizes, dtype=value.dtype)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
