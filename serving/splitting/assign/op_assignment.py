"""Assignment of operations to parts, and the floating operations.

Those are cloned into every segment that needs their result.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Final

from ipnext.errors import InvalidInput
from ipnext.model.manifest.split import SplitPolicy
from serving.splitting.assign.modules import Ownership, lineage, module_paths, tables_of
from serving.splitting.assign.shards import PartUnits, deal
from serving.splitting.ir.packed_rows import packed_rows
from serving.splitting.ir.program import Operation, Program, ProgramWeight
from serving.splitting.ir.views import gives_view

SMALL_BYTES: Final = 65_536
"""Buffers and constants up to this size are copied along with the glue that uses them."""


@dataclass(frozen=True, slots=True)
class Part:
    """A part after sharding: its name, its modules and its limits."""

    name: str
    modules: tuple[str, ...]
    origin: str
    """Name of the part in the policy."""
    field: str = ""
    max_bytes: int | None = None


class PartAssignment:
    """The parts of a policy over a program. `reserved`: bytes of each sharded part's budget kept for copies."""

    def __init__(self, program: Program, policy: SplitPolicy, reserved: Mapping[str, int] | None = None) -> None:
        self._program = program
        self._packed = packed_rows(program)
        self._default = policy.default
        self._ownership = Ownership(policy, module_paths(program))
        self._homes: dict[str, str] = {}
        self.parts: dict[str, Part] = {}
        for index, part in enumerate(policy.parts):
            roots = self._ownership.roots[part.name]
            if part.shard is None:
                self._add(Part(part.name, roots, part.name, f"parts.{index}"), roots)
            else:
                self._deal(index, policy, (reserved or {}).get(part.name, 0))
        whole = {part.name for part in policy.parts if part.shard is None}
        if policy.default in self.parts and policy.default not in whole:
            msg = f"default: a shard is called {policy.default!r}; the rest needs another name"
            raise InvalidInput(msg, field="default", value=policy.default)
        if policy.default not in self.parts:
            self.parts[policy.default] = Part(policy.default, self._find_unmatched(), policy.default, "default")

    def _deal(self, index: int, policy: SplitPolicy, reserved: int) -> None:
        part = policy.parts[index]
        field = f"parts.{index}.shard"
        assert part.shard is not None  # noqa: S101  # the caller checked
        opened = PartUnits(part.name, self._program, self._ownership, tables_of(self._program)).open_until(part.shard)
        for number, units in enumerate(deal(opened, part.shard, field=field, reserved_bytes=reserved)):
            modules = tuple(sorted(unit.path for unit in units))
            name = f"{part.name}-{number}"
            self._add(Part(name, modules, part.name, field, part.shard.max_bytes), modules)

    def _add(self, part: Part, paths: Sequence[str]) -> None:
        if part.name in self.parts:
            msg = f"parts: a shard is called {part.name!r}, and so is another part; rename that one"
            raise InvalidInput(msg, field="parts", value=part.name)
        self.parts[part.name] = part
        self._homes |= dict.fromkeys(paths, part.name)

    def _find_unmatched(self) -> tuple[str, ...]:
        """Return the outermost modules and weights that no pattern names, nor anything below them."""
        paths = [p for p in module_paths(self._program) if self.home(p) is None]
        free = {p for p in paths if not any(root.startswith(f"{p}.") for root in self._homes)}
        return tuple(p for p in sorted(free) if not any(above in free for above in lineage(p) if above != p))

    def home(self, path: str) -> str | None:
        """Return the part of a module or weight; None if no pattern names it, or no shard has it."""
        return next((self._homes[p] for p in lineage(path) if p in self._homes), None)

    def part_of(self, operation: Operation) -> str:
        """Return the part of an operation.

        Its module's, else that of a weight below its module that it uses, else the default.
        """
        return self.home(operation.path) or self._of_weights(operation) or self._default

    def _of_weights(self, operation: Operation) -> str | None:
        keys = {weight.key for weight in self._weights_of(operation)}
        for weight in self._program.weights.values() if keys else ():
            below = not operation.path or weight.path.startswith(f"{operation.path}.")
            if weight.key in keys and below and (home := self.home(weight.path)) is not None:
                return home
        return None

    def is_between(self, operation: Operation) -> bool:
        """Whether an enclosing module of parts, or the model itself, calls the operation, and it uses no weights."""
        path = operation.path
        around = not path or any(root.startswith(f"{path}.") for root in self._homes)
        return around and self.home(path) is None and not self._weights_of(operation)

    def _weights_of(self, operation: Operation) -> list[ProgramWeight]:
        """Return the weights that an operation uses; to unpack rows of a quantized table is to use the table."""
        weights = self._program.weights
        names = (self._packed.tables.get(name, name) for name in operation.inputs)
        return [weights[name] for name in names if name in weights]

    @cached_property
    def floating(self) -> frozenset[int]:
        """Operations without a part: they are cloned into every segment that needs their result.

        These are sizes; glue over the request alone; small constants; views between modules; and all views that are not
        dense, since tensors arrive dense, which would change the last bits of some sums.
        """
        found: set[int] = set()
        for operation in self._program.operations:
            if operation.outputs and self._floats(operation):
                found.add(operation.index)
                self._note(operation)
            else:
                self._depends |= set(operation.outputs)
        return frozenset(found)

    @cached_property
    def _depends(self) -> set[str]:
        """Values that depend on an operation with a part."""
        return set()

    @cached_property
    def _request(self) -> set[str]:
        """Values that depend on the request."""
        return set(self._program.inputs)

    def _note(self, operation: Operation) -> None:
        sizes = [self._program.size(name) for name in operation.outputs] if operation.symbolic else [None]
        by_batch = all(size is not None and size.times(self._program.batch) is not None for size in sizes)
        if self._depends.intersection(operation.inputs) and not by_batch:
            self._depends |= set(operation.outputs)
        if self._request.intersection(operation.inputs):
            self._request |= set(operation.outputs)

    def _floats(self, operation: Operation) -> bool:
        if operation.symbolic:
            return True
        weights, unpacked = self._weights_of(operation), self._packed.unpacked_bytes
        small = sum(unpacked.get(w.name, w.size_bytes) for w in weights) <= SMALL_BYTES
        if gives_view(operation) and (self.is_between(operation) or self._lies_apart(operation)):
            return small
        of_request = self._request.intersection(operation.inputs)
        learned = any(w.kind == "parameter" or w.name in unpacked for w in weights)
        if self._depends.intersection(operation.inputs) or (of_request and learned):
            return False
        glue = self.home(operation.path) is None and self._of_weights(operation) is None
        return small and (glue or not (of_request or weights))

    def _lies_apart(self, operation: Operation) -> bool:
        tensors = [name for name in operation.outputs if self._program.is_tensor(name)]
        return any(self._program.layout(name).order is None for name in tensors)
