"""The figures to reach, and which rows answer for each."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from benchmarks.serving.report import Figures, Report, Row

Pick = Callable[[Figures], float]


@dataclass(frozen=True)
class Target:
    """A figure in words, what it is measured over, its limit, and how it is read from a report (None: not measured)."""

    figure: str
    baseline: str
    limit: str
    read: Callable[[Report], float | None]
    reached: Callable[[float], bool]


def ratio(row: Row, of: Pick) -> float | None:
    """Return a figure of a row over the same of its baseline."""
    return None if row.own is None or row.baseline is None else of(row.own) / of(row.baseline)


def p50(figures: Figures) -> float:
    """Half of the calls take at most so long."""
    return figures.p50


def fastest(figures: Figures) -> float:
    """Return the time of the fastest call."""
    return figures.fastest


def p99(figures: Figures) -> float:
    """All but one call in a hundred take at most so long."""
    return figures.p99


def cpu(figures: Figures) -> float:
    """CPU seconds of a call."""
    return figures.cpu


def _one(report: Report, section: str, subject: str, form: str, batch: int, *, of: Pick = p50) -> float | None:
    for row in report.rows:
        if row.section == section and row.subject.startswith(subject) and (row.form, row.batch) == (form, batch):
            return ratio(row, of)
    return None


def best_peer(report: Report, batch: int, forms: Sequence[str]) -> float | None:
    """p50 of the best peer over ours in the same turns, the smallest such ratio: above 1, all peers are slower."""
    found = []
    for row in report.of("peers"):
        if row.batch != batch or row.form not in forms or row.own is None or row.subject.startswith("IPnext"):
            continue
        ours = ours_beside(report, row)
        if ours is not None and ours.own is not None:
            found.append(row.own.p50 / ours.own.p50)
    return min(found, default=None)


def ours_beside(report: Report, peer: Row) -> Row | None:
    """Our row of the same turns as a peer's: JSON beside JSON, binary beside binary."""
    form = "V2 JSON" if "JSON" in peer.form else "V2 binary"
    for row in report.of(peer.section):
        same = (row.beside, row.batch, row.form) == (peer.beside, peer.batch, form)
        if same and row.subject.startswith("IPnext"):
            return row
    return None


def at_equal_p99(report: Report, peer: Row) -> Row | None:
    """Our row with the most answers a second whose p99 is not above the peer's."""
    beside = [r for r in report.of("throughput") if r.beside == peer.beside and r.batch == peer.batch]
    ours = [r for r in beside if r.subject.startswith("IPnext") and r.own and peer.own and r.own.p99 <= peer.own.p99]
    return max(ours, key=lambda row: row.own.qps if row.own else 0.0, default=None)


def best_throughput(report: Report, batch: int) -> Row | None:
    """Return the peer with the most answers a second; anchors without a product behind them are left out."""
    rows = [
        row
        for row in report.of("throughput")
        if row.batch == batch
        and row.own
        and row.beside
        and not row.subject.startswith("IPnext")
        and "anchor" not in row.subject
    ]
    return max(rows, key=lambda row: row.own.qps if row.own else 0.0, default=None)


def throughput_gain(report: Report, batch: int) -> float | None:
    """Ours over the best peer, at equal p99."""
    peer = best_throughput(report, batch)
    ours = None if peer is None else at_equal_p99(report, peer)
    return None if peer is None or ours is None or not ours.own or not peer.own else ours.own.qps / peer.own.qps


def _at_most(limit: float) -> Callable[[float], bool]:
    return lambda value: value <= limit


def _at_least(limit: float) -> Callable[[float], bool]:
    return lambda value: value >= limit


JSON_FORMS = ("V2 JSON", "own JSON")


def _peers_target(batch: int) -> Target:
    return Target(
        f"best peer's p50 over ours, JSON, batch {batch}",
        "our host, same turns",
        "> 1",
        lambda report: best_peer(report, batch, JSON_FORMS),
        lambda value: value > 1,
    )


def _host_target(form: str, batch: int, of: Pick, limit: float) -> Target:
    return Target(
        f"one host, {'p50' if of is p50 else 'min'}, {form}, batch {batch}",
        "eager forward in process, same turns",
        f"<= {limit:g}",
        lambda report: _one(report, "ours", "host", form, batch, of=of),
        _at_most(limit),
    )


def _split_target(batch: int, limit: float) -> Target:
    return Target(
        f"split in dense + 2 sparse, p50, binary, batch {batch}",
        "unsplit, same transport, same turns",
        f"<= {limit:g}",
        lambda report: _one(report, "split", "split", "V2 binary", batch),
        _at_most(limit),
    )


def whole_way(report: Report, batch: int) -> float | None:
    """p50 through Envoy and router over that of the host asked itself, in the same turns."""
    found = {
        row.subject: row.own.p50
        for row in report.of("ours")
        if row.own is not None and (row.form, row.batch) == ("V2 binary", batch)
    }
    whole, host = found.get("Envoy, router, host"), found.get("host")
    return None if whole is None or host is None else whole / host


def _way_target(batch: int, limit: float) -> Target:
    return Target(
        f"Envoy, router, host, p50, binary, batch {batch}",
        "the host asked itself, same turns",
        f"<= {limit:g}",
        lambda report: whole_way(report, batch),
        _at_most(limit),
    )


def _throughput_target(batch: int) -> Target:
    return Target(
        f"QPS over the best peer's at equal p99, batch {batch}",
        "best peer, same turns",
        ">= 1.5",
        lambda report: throughput_gain(report, batch),
        _at_least(1.5),
    )


def _release_seconds(report: Report) -> float | None:
    rows = [row for row in report.of("release") if row.subject == RELEASE_BEYOND and row.own]
    return rows[0].own.p50 if rows and rows[0].own else None


RELEASE_BEYOND = "beyond copy and load"

TARGETS: Sequence[Target] = (
    _host_target("V2 JSON", 1, fastest, 1.8),
    _host_target("V2 JSON", 64, fastest, 1.9),
    _host_target("V2 binary", 1, fastest, 1.6),
    _host_target("V2 binary", 64, fastest, 1.3),
    _host_target("V2 binary", 1, p50, 1.3),
    _host_target("V2 binary", 64, p50, 1.05),
    Target(
        "host with AOTInductor, p50, binary, batch 1",
        "eager forward in process, same turns",
        "<= 1",
        lambda report: _one(report, "ours", "host, AOTInductor", "V2 binary", 1),
        _at_most(1.0),
    ),
    *(_peers_target(batch) for batch in (1, 64, 256)),
    *(_throughput_target(batch) for batch in (1, 64)),
    _way_target(1, 1.5),
    _way_target(64, 1.2),
    _split_target(1, 1.0),
    _split_target(64, 1.05),
    _split_target(256, 1.2),
    Target(
        "publish of 300 MB to answering everywhere, beyond copy and load, seconds",
        "copy and load of the same snapshot, same run",
        "<= 1 s",
        _release_seconds,
        _at_most(1.0),
    ),
)
