"""Answers a second under many clients (closed loops): a peer and a host of ours in turns.

The rule for "at equal p99": the peer's figure is its QPS with all clients; ours is the highest QPS, over numbers of
clients, whose p99 is not above the peer's.
"""

from collections.abc import Iterator, Sequence

from benchmarks.serving.asking import OURS, Asking
from benchmarks.serving.bodies import V2_BINARY, V2_JSON
from benchmarks.serving.closed_loop import closed_loop
from benchmarks.serving.reference import EAGER, Asked
from benchmarks.serving.report import Figures, Row
from benchmarks.serving.rows.own import HOST_PATH, PINNED
from benchmarks.serving.servers.process import ServerProcess
from benchmarks.serving.timing import Sample, measure

ROUNDS = 3
BATCHES = 2
"""Of the batch sizes asked for, the smallest ones: larger ones saturate any server."""


def beside_ours(peer: Asked, host: ServerProcess, asking: Asking) -> Iterator[Row]:
    """Measure the peer and ours with all clients; ours with fewer, until its p99 is not above the peer's."""
    ours = Asked(OURS, [host], HOST_PATH, V2_JSON if "JSON" in peer.form.name else V2_BINARY, PINNED)
    for batch in sorted(asking.batches)[:BATCHES]:
        for one in (peer, ours):
            one.check(asking.reference, batch)
        eager = Figures.of(measure([asking.reference.contender(batch)], asking.seconds / ROUNDS)[EAGER])
        theirs, own = _in_turns([peer, ours], batch, asking, asking.clients)
        yield _row(peer, peer.name, batch, asking.clients, theirs, eager)
        yield _row(ours, peer.name, batch, asking.clients, own, eager)
        clients = asking.clients
        while own.p99 > theirs.p99 and clients > 1:
            clients //= 2
            [own] = _in_turns([ours], batch, asking, clients)
            yield _row(ours, peer.name, batch, clients, own, eager)


def alone(ways: Sequence[Asked], asking: Asking) -> Iterator[Row]:
    """Ways of ours in turns, without a peer."""
    for batch in sorted(asking.batches)[:BATCHES]:
        eager = Figures.of(measure([asking.reference.contender(batch)], asking.seconds / ROUNDS)[EAGER])
        figures = _in_turns(ways, batch, asking, asking.clients)
        for way, own in zip(ways, figures, strict=True):
            yield _row(way, "", batch, asking.clients, own, eager)


def _row(asked: Asked, beside: str, batch: int, clients: int, own: Figures, eager: Figures) -> Row:
    return Row(
        section="throughput",
        subject=asked.name,
        form=asked.form.name,
        batch=batch,
        clients=clients,
        beside=beside,
        own=own,
        baseline=eager,
        baseline_is=EAGER,
    )


def _in_turns(asked: Sequence[Asked], batch: int, asking: Asking, clients: int) -> list[Figures]:
    pools = [Sample() for _ in asked]
    seconds = asking.seconds / ROUNDS
    for _ in range(ROUNDS):
        for pool, one in zip(pools, asked, strict=True):
            requests = one.written(asking.reference, batch)
            cpu = one.cpu_seconds()
            flow = closed_loop(one.port, requests, clients=clients, seconds=seconds)
            pool.cpu_seconds += one.cpu_seconds() - cpu
            pool.seconds += flow.sample.seconds
            pool.calls += flow.answered
    return [Figures.of(pool, qps=len(pool.seconds) / asking.seconds) for pool in pools]
