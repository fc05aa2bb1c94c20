"""Peers, one at a time, each in turns with one of our hosts and the eager forward."""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager

from benchmarks.serving.asking import OURS, Asking
from benchmarks.serving.peer_list import Peer, start
from benchmarks.serving.reference import EAGER, Asked
from benchmarks.serving.report import Figures, Row, Section
from benchmarks.serving.rows.own import on_host
from benchmarks.serving.rows.throughput import beside_ours
from benchmarks.serving.servers.process import ServerProcess
from benchmarks.serving.timing import measure


def peer_rows(peer: Peer, host: ServerProcess, asking: Asking, *, latency: bool, throughput: bool) -> Iterator[Row]:
    """All rows of a peer and of ours beside it. What cannot be run is a row that says why."""
    if latency:
        with _excused("peers", peer.what) as excuse, _ready(peer, asking, batching=False) as server:
            asked = [Asked(peer.what, [server], peer.path, form, {}) for form in peer.forms]
            yield from _latency(asked, host, asking)
        yield from excuse
    if throughput:
        with _excused("throughput", peer.what) as excuse, _ready(peer, asking, batching=False) as server:
            yield from beside_ours(Asked(peer.what, [server], peer.path, peer.forms[0], {}), host, asking)
        yield from excuse
    if throughput and peer.batching is not None:
        name = f"{peer.what}, batching"
        with _excused("throughput", name) as excuse, _ready(peer, asking, batching=True) as server:
            yield from beside_ours(Asked(name, [server], peer.path, peer.batching, {}), host, asking)
        yield from excuse


@contextmanager
def _excused(section: Section, name: str) -> Iterator[list[Row]]:
    """Yield a list that gets a row with the reason if the peer cannot be measured."""
    excuse: list[Row] = []
    try:
        yield excuse
    except (RuntimeError, OSError) as error:
        excuse.append(Row(section=section, subject=name, beside=name, note=f"not measured: {error}"))


def _ready(peer: Peer, asking: Asking, *, batching: bool) -> ServerProcess:
    server = start(peer, asking.reference.rows, folder=asking.peers_folder, work=asking.folder, batching=batching)
    form = peer.batching if batching and peer.batching else peer.forms[0]
    asked = Asked(peer.what, [server], peer.path, form, {})
    try:
        return server.wait(lambda: asked.answers(asking.reference))
    except BaseException:
        server.end()
        raise


def _latency(asked: Sequence[Asked], host: ServerProcess, asking: Asking) -> Iterator[Row]:
    ours = on_host(OURS, host)
    for batch in asking.batches:
        for one in [*asked, *ours]:
            one.check(asking.reference, batch)
        with ExitStack() as stack:
            contenders = [one.contender(asking.reference, batch, stack) for one in [*asked, *ours]]
            samples = measure([asking.reference.contender(batch), *contenders], asking.seconds)
        for one, contender in zip([*asked, *ours], contenders, strict=True):
            yield Row(
                section="peers",
                subject=one.name,
                form=one.form.name,
                batch=batch,
                beside=asked[0].name,
                own=Figures.of(samples[contender.name]),
                baseline=Figures.of(samples[EAGER]),
                baseline_is=EAGER,
            )
