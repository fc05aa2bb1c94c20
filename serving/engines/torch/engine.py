"""The torch engine: runs exported programs on the CPU, one thread per request."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np
import structlog
import torch

from ipnext.artifacts.native_code import check_native_signature, read_native_signers
from ipnext.errors import InvalidInput, IPnextError, LoadFailed, SignatureInvalid
from ipnext.model.registry.delta import DeltaDocument
from ipnext.model.registry.registry import Signature, SnapshotManifest
from ipnext.names import LIBRARY_FILE
from ipnext.settings import NativeCodeSettings
from serving.engines.torch.compiled import CompiledProgram, close_together, read_compiled, wants_compiled
from serving.engines.torch.fx.direct_calls import DirectGraph, Early, Function
from serving.engines.torch.prefault import make_resident
from serving.engines.torch.program import read_program
from serving.engines.torch.program_cache import TemplateCache, TorchProgram
from serving.engines.torch.request_level import RequestCall, agreeing_partition
from serving.engines.torch.warmup_inputs import draw_inputs, rows_are_independent, zeros
from serving.protocol.tensors import Array
from serving.snapshots.directory import verify_cached
from serving.weights.delta_snapshot import Delta
from serving.weights.tensor_file import align

ENGINE: Final = "torch"
WARM_UP_BATCHES: Final = (1, 8)
_OUT_OF_RANGE = re.compile(r"out of (range|bounds)|not in the valid range", re.IGNORECASE)


class TorchPart:
    """An exported program in memory, or the library compiled from it."""

    def __init__(self, program: TorchProgram | CompiledProgram, signature: Signature) -> None:
        self._program: TorchProgram | CompiledProgram | None = program
        self._place = align if isinstance(program, TorchProgram) else close_together
        self._graph: DirectGraph | None = None
        self._function: Function | None = None
        self._independent = False
        self._signature = signature
        self._once = RequestCall(self._run, signature) if signature.request_inputs else None
        self._bf16 = frozenset(spec.name for spec in signature.inputs if spec.datatype == "BF16")
        self._size = sum({t.data_ptr(): t.nbytes for t in program.arguments if isinstance(t, torch.Tensor)}.values())

    @property
    def signature(self) -> Signature:
        """The input and output tensors."""
        return self._signature

    @property
    def size_bytes(self) -> int:
        """Bytes of all weights, shared ones once."""
        return self._size

    @property
    def rows_are_independent(self) -> bool:
        """Whether several requests may share a batch; known once the part is warmed up."""
        return self._independent

    def infer(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """Run one forward pass in inference mode.

        Numpy's memory is used directly if it is writable and aligned like torch's.
        """
        program = self._program
        if program is None:
            msg = "the part is closed"
            raise LoadFailed(msg)
        try:
            with torch.inference_mode():
                given = [self.to_torch(name, inputs[name]) for name in program.inputs]
                answer = self._run(given) if self._once is None else self._once(given)
                return {name: to_numpy(tensor) for name, tensor in zip(program.outputs, answer, strict=True)}
        except (IndexError, RuntimeError) as error:
            raise _classify_error(error) from error

    def warm_up(self) -> None:
        """Prefault the weights, build the direct form, run zeros at two batch sizes, and test rows for independence."""
        if self._program is not None:
            make_resident(a for a in self._program.arguments if isinstance(a, torch.Tensor))
        self._graph = self._direct()
        self._function = None if self._graph is None else self._graph.whole()
        if self._once is not None and isinstance(self._program, TorchProgram):
            self._once.partitioned = agreeing_partition(self._program, self._once, self.to_torch, to_numpy)
        for batch in WARM_UP_BATCHES:
            self.infer(zeros(self._signature, batch))
        self._independent = self._test_independence()

    def _test_independence(self) -> bool:
        """Test row independence once per program, or per library."""
        if not isinstance(self._program, TorchProgram):
            return rows_are_independent(self._signature, self.infer)
        shared = self._program.template
        if shared.independent is None:
            shared.independent = rows_are_independent(self._signature, self.infer)
        return shared.independent

    def changed_by(self, delta: Delta, *, parent_stays: bool) -> "TorchPart":
        """Return a new part with a delta applied; it shares the program and all unchanged memory. LoadFailed."""
        if self._program is None:
            msg = "the parent of the delta was closed meanwhile"
            raise LoadFailed(msg)
        program = self._program.changed_by(delta)
        part = TorchPart(program, self._signature)
        part._size = program.weights.added_bytes + (0 if parent_stays else self._size)
        return part

    def check_delta(self, document: DeltaDocument, when: Literal["before", "after"]) -> None:
        """Compare the digests of all rows with those that a delta declares before or after it.

        LoadFailed if they differ.
        """
        if self._program is not None:
            self._program.weights.check(document, when)

    def _run(self, given: Sequence[torch.Tensor]) -> Sequence[torch.Tensor]:
        if self._program is None:
            msg = "the part is closed"
            raise LoadFailed(msg)
        return self._program.run(given) if self._function is None else self._function(*given)

    def _direct(self) -> DirectGraph | None:
        """Build the direct form.

        None for a library, and if the part refuses both trial requests: it then runs as exported.
        """
        program = self._program
        if not isinstance(program, TorchProgram):
            return None
        for arrays in (draw_inputs(self._signature, 3, np.random.default_rng(0)), zeros(self._signature, 1)):
            example = [self.to_torch(name, arrays[name]) for name in program.inputs]
            try:
                with torch.inference_mode():
                    return program.direct(example)
            except (IndexError, RuntimeError):
                continue
        return None

    def stage(self, late: frozenset[str]) -> "StagedTorch | None":
        """Return the two-step pass.

        None if the part runs as exported or nothing can be computed without the late inputs. None also for parts with
        request inputs, since the number of rows is known only when all inputs are there.
        """
        program, graph = self._program, self._graph
        if not isinstance(program, TorchProgram) or graph is None or self._once is not None:
            return None
        numbers = {number for number, name in enumerate(program.inputs) if name in late}
        functions = graph.stage(numbers)
        return None if functions is None else StagedTorch(self, program, functions, late)

    def close(self) -> None:
        """Drop program and weights."""
        self._program = self._graph = self._function = self._once = None

    def to_torch(self, name: str, array: Array) -> torch.Tensor:
        """Return an input as the program takes it, in its own memory if that is writable and aligned."""
        usable = array if array.flags.writeable and array.flags.aligned else array.copy()
        if name in self._bf16:
            return self._place(torch.from_numpy(usable.view(np.int16)).view(torch.bfloat16))
        return self._place(torch.from_numpy(usable))


class StagedTorch:
    """The two-step pass of a TorchPart."""

    def __init__(
        self, part: TorchPart, program: TorchProgram, functions: tuple[Early, Function], late: frozenset[str]
    ) -> None:
        self._part = part
        self._early, self._rest = functions
        self._given = [name for name in program.inputs if name not in late]
        self._late = [name for name in program.inputs if name in late]
        self._outputs = program.outputs

    def begin(self, inputs: Mapping[str, Array]) -> Any:
        """Compute the share that needs no late input."""
        try:
            with torch.inference_mode():
                return self._early(*(self._part.to_torch(name, inputs[name]) for name in self._given))
        except (IndexError, RuntimeError) as error:
            raise _classify_error(error) from error

    def complete(self, state: Any, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """Return the outputs, from the state of `begin` and the late inputs."""
        try:
            with torch.inference_mode():
                answer = self._rest(state, *(self._part.to_torch(name, inputs[name]) for name in self._late))
                return {name: to_numpy(tensor) for name, tensor in zip(self._outputs, answer, strict=True)}
        except (IndexError, RuntimeError) as error:
            raise _classify_error(error) from error


class TorchEngine:
    """Loads snapshots of engine `torch`. Snapshots of one program share its graph."""

    def __init__(self, *, trusts_libraries: bool = False) -> None:
        """Create the engine.

        `trusts_libraries`: run libraries unsigned, as this process made them; else by the operator's setting.
        """
        self._templates = TemplateCache()
        self._trusts_libraries = trusts_libraries

    def load(self, directory: Path, manifest: SnapshotManifest, settings: Mapping[str, Any]) -> TorchPart:
        """Read the program. Setting `threads` (default 1) is torch's intra-operation thread count of this process.

        With setting `compile`, the library of a snapshot that has one runs instead of the program, if the snapshot is
        signed with a key that the operator of the host trusts; otherwise the program runs. Every file beside a library
        is hashed before it runs. Errors of `verify_cached`.
        """
        threads = settings.get("threads", 1)
        if type(threads) is not int or threads < 1:
            msg = f"settings.threads must be a whole number >= 1, got {threads!r}"
            raise LoadFailed(msg)
        torch.set_num_threads(threads)
        has_library = any(file.path == LIBRARY_FILE for file in manifest.files)
        compiled = wants_compiled(settings) and has_library and self._may_run(directory, manifest)
        if compiled and not self._trusts_libraries:
            verify_cached(directory, manifest)
        program = read_compiled(directory) if compiled else read_program(directory, self._templates)
        given = {spec.name for spec in manifest.signature.inputs}, [spec.name for spec in manifest.signature.outputs]
        if (set(program.inputs), list(program.outputs)) != given:
            msg = f"the program takes {program.inputs} and gives {program.outputs}; its manifest says otherwise"
            raise LoadFailed(msg)
        return TorchPart(program, _in_order(manifest.signature, program.inputs))

    def _may_run(self, directory: Path, manifest: SnapshotManifest) -> bool:
        """Whether the snapshot's library may run here."""
        if self._trusts_libraries:
            return True
        try:
            policy = read_native_signers(NativeCodeSettings().native_library_keys_file)
            if policy is None:
                return False
            check_native_signature(policy, manifest, directory)
        except (InvalidInput, SignatureInvalid) as error:
            structlog.get_logger().warning("the program runs in place of its library", reason=error.message)
            return False
        return True


def _classify_error(error: Exception) -> IPnextError:
    """Return the error: an index out of range is the request's fault, any other error the part's."""
    text = str(error).strip().partition("\n")[0]
    if _OUT_OF_RANGE.search(text):
        return InvalidInput(f"an input holds an index beyond its table: {text}", field="inputs")
    return IPnextError(f"the part failed: {text}")


def _in_order(signature: Signature, inputs: tuple[str, ...]) -> Signature:
    by_name = {spec.name: spec for spec in signature.inputs}
    return signature.model_copy(update={"inputs": tuple(by_name[name] for name in inputs)})


def to_numpy(tensor: torch.Tensor) -> Array:
    """Return a view of the same memory; BF16 as its bits."""
    if tensor.dtype == torch.bfloat16:
        return tensor.contiguous().view(torch.int16).numpy().view(np.uint16)
    return tensor.numpy()
