"""A model cut into parts on hosts of their own beside the same model whole on one host, over the same transport."""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path

from benchmarks.serving.bodies import V2_BINARY, V2_JSON
from benchmarks.serving.reference import EAGER, Asked, Reference
from benchmarks.serving.report import Figures, Row, Section
from benchmarks.serving.rows.own import IPNEXT, WHOLE, ran
from benchmarks.serving.servers.own import INFER_PATH, OwnServers
from benchmarks.serving.timing import Sample, measure
from ipnext.model.registry.registry import PartGraph, single_part_graph

UNSPLIT = "unsplit: router, 1 host"
POLICY = """
parts:
  - {{name: sparse, modules: ["tables.*"], shard: {{by: count, count: {shards}}}}}
default: dense
"""
SHARDS = 2


def split_rows(
    section: Section, reference: Reference, folder: Path, batches: Sequence[int], seconds: float
) -> Iterator[Row]:
    """Whole and split at every batch size, in turns, with the eager forward in the same turns."""
    with OwnServers(folder) as own:
        unsplit, split = _served(own, reference, folder)
        for batch in batches:
            for whole, parts in zip(unsplit, split, strict=True):
                same = {one.name: one.check(reference, batch) for one in (whole, parts)}
                with ExitStack() as stack:
                    pair = [one.contender(reference, batch, stack) for one in (whole, parts)]
                    samples = measure([reference.contender(batch), *pair], seconds)
                before, after = (samples[contender.name] for contender in pair)
                yield _row(section, whole, batch, before, samples[EAGER], EAGER, same[whole.name])
                yield _row(section, parts, batch, after, before, UNSPLIT, same[parts.name])


def _served(own: OwnServers, reference: Reference, folder: Path) -> tuple[list[Asked], list[Asked]]:
    """Serve the model whole behind a router, and in parts behind another; each asked in binary and in JSON."""
    manifest = reference.export(folder / WHOLE)
    whole = own.host(WHOLE, {WHOLE: folder / WHOLE})
    router = own.router("router-whole", single_part_graph(WHOLE, manifest.signature), [whole])
    graph = cut(folder / WHOLE, folder / "parts")
    parts = sorted({node.part for node in graph.nodes})
    hosts = [own.host(part, {part: folder / "parts" / part}) for part in parts]
    split_router = own.router("router-split", graph, hosts)
    name = f"split: router, {len(hosts)} hosts"
    forms = (V2_BINARY, V2_JSON)
    unsplit = [Asked(UNSPLIT, [router, whole.server], INFER_PATH, form, {}) for form in forms]
    processes = [split_router, *(host.server for host in hosts)]
    return unsplit, [Asked(name, processes, INFER_PATH, form, {}) for form in forms]


def _row(  # noqa: PLR0913, PLR0917 - one for each field
    section: Section, asked: Asked, batch: int, own: Sample, baseline: Sample, baseline_is: str, equal: bool
) -> Row:
    return Row(
        section=section,
        subject=asked.name,
        form=asked.form.name,
        batch=batch,
        own=Figures.of(own),
        baseline=Figures.of(baseline),
        baseline_is=baseline_is,
        bit_equal=equal,
    )


def cut(source: Path, target: Path) -> PartGraph:
    """Cuts a snapshot by `ipnext split`, compared in every bit. RuntimeError with its last line."""
    policy = target.with_suffix(".yaml")
    policy.write_text(POLICY.format(shards=SHARDS), encoding="utf-8")
    ran([IPNEXT, "split", str(source), "--policy", str(policy), "--verify", "--out", str(target)])
    return PartGraph.model_validate_json((target / "graph.json").read_text(encoding="utf-8"))
