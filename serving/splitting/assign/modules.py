"""Assignment of modules to parts by a policy.

The nearest pattern above a module wins; two parts may not name the same one.
"""

import difflib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Final

from ipnext.errors import InvalidInput
from ipnext.model.manifest.split import SplitPart, SplitPolicy
from serving.splitting.ir.program import Program

_MOST_NAMED: Final = 12
_LOOKUPS: Final = tuple(f"torch.ops.aten.{name}." for name in ("embedding", "embedding_bag", "index_select", "index"))


def module_paths(program: Program) -> tuple[str, ...]:
    """Return the paths of all modules, parameters and buffers of a model, without the model itself."""
    used = {operation.path for operation in program.operations} | {w.path for w in program.weights.values()}
    listed = (entry["fqn"] for entry in program.document["program"]["graph_module"]["module_call_graph"])
    return tuple(sorted({above for path in (*used, *listed) for above in lineage(path)}))


def lineage(path: str) -> Iterator[str]:
    """Yield the path and its ancestors, from the innermost, without the model itself, whose path is empty."""
    while path:
        yield path
        path = path.rpartition(".")[0]


class Ownership:
    """The roots of each part: modules that its patterns name, without those below another root of the part."""

    def __init__(self, policy: SplitPolicy, paths: Sequence[str]) -> None:
        self._root_owner: dict[str, str] = {}
        self.roots: dict[str, tuple[str, ...]] = {}
        for index, part in enumerate(policy.parts):
            self.roots[part.name] = roots = _roots(index, part, paths)
            for root in roots:
                other = self._root_owner.setdefault(root, part.name)
                if other != part.name:
                    raise _double_match_error(index, root, part, other)

    def owner(self, path: str) -> str | None:
        """Return the name of the part; None if no pattern names the path."""
        return next((self._root_owner[p] for p in lineage(path) if p in self._root_owner), None)

    def root(self, path: str) -> str | None:
        """Return the nearest root at or above a path."""
        return next((p for p in lineage(path) if p in self._root_owner), None)


def _roots(index: int, part: SplitPart, paths: Sequence[str]) -> tuple[str, ...]:
    matched: set[str] = set()
    for number, pattern in enumerate(part.modules):
        found = {path for path in paths if fnmatchcase(path, pattern)}
        if not found:
            field = f"parts.{index}.modules.{number}"
            raise _matches_nothing(field, pattern, paths)
        matched |= found
    return tuple(sorted(p for p in matched if not any(above in matched for above in lineage(p) if above != p)))


def _matches_nothing(field: str, pattern: str, paths: Sequence[str]) -> InvalidInput:
    near = difflib.get_close_matches(pattern, paths, n=_MOST_NAMED, cutoff=0.5)
    shown = near or [path for path in paths if path.count(".") <= 1][:_MOST_NAMED] or list(paths[:_MOST_NAMED])
    where = "near it are" if near else "there are"
    more = "" if len(shown) == len(paths) else ", ..."
    msg = f"{field}: {pattern!r} matches no module; {where}: {', '.join(shown)}{more}"
    return InvalidInput(msg, field=field, value=pattern, allowed=tuple(paths))


def _double_match_error(index: int, root: str, part: SplitPart, other: str) -> InvalidInput:
    field = f"parts.{index}.modules"
    msg = f"{field}: module {root!r} is matched by part {other!r} and by part {part.name!r}; a module goes to one part"
    return InvalidInput(msg, field=field, value=root, allowed=(other, part.name))


def tables_of(program: Program) -> Mapping[str, str]:
    """Return stored tensor -> path of its table, for each weight that is looked up by ids.

    The path is the module's; if the parameter has no separate module that looks it up, the parameter's own.
    """
    lookups: dict[str, str] = {}
    for operation in program.operations:
        weight = program.weights.get(operation.inputs[0]) if operation.inputs else None
        if weight is not None and operation.target.startswith(_LOOKUPS):
            lookups.setdefault(weight.key, operation.path)
    shared = Counter(lookups.values())
    found: dict[str, str] = {}
    for weight in program.weights.values():
        module = lookups.get(weight.key)
        if module is not None and module == weight.path.rpartition(".")[0] and shared[module] == 1:
            found[weight.key] = module or weight.path
    for weight in program.weights.values():
        if weight.key in lookups:
            found.setdefault(weight.key, weight.path)
    return found
