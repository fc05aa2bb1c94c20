"""The serving benchmark.

What it counts as an answer, how it takes turns, the rule of equal p99, rows for what cannot run.
"""

import sys
from contextlib import ExitStack
from itertools import count, pairwise
from pathlib import Path

import numpy as np
import pytest

from benchmarks.serving import peer_list, timing
from benchmarks.serving.asking import OURS, Asking
from benchmarks.serving.bodies import FORMS
from benchmarks.serving.closed_loop import closed_loop
from benchmarks.serving.dlrm import FEATURES, TABLES, draw, make
from benchmarks.serving.http_wire import Connection, answer_size, answers, read_answer, request_bytes
from benchmarks.serving.latency import measure_sections
from benchmarks.serving.peer_list import ENVIRONMENTS, PEERS
from benchmarks.serving.reference import Asked, Reference
from benchmarks.serving.report import Figures, Report, Row
from benchmarks.serving.rows.own import WHOLE, on_edge, on_host
from benchmarks.serving.rows.peers import peer_rows
from benchmarks.serving.servers.own import ROOT, OwnServers
from benchmarks.serving.servers.process import ServerProcess
from benchmarks.serving.tables import BLOCKS, PAGE, peers, rewritten, targets, throughput
from benchmarks.serving.targets import at_equal_p99, best_peer, throughput_gain
from benchmarks.serving.timing import Contender, measure
from ipnext.infra.process.ports import free_port
from ipnext.model.registry.registry import single_part_graph

PLAIN = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nx-a: b\r\n\r\nhello"
CHUNKED = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n3\r\nhel\r\n2\r\nlo\r\n0\r\n\r\n"


@pytest.mark.parametrize("answer", [PLAIN, CHUNKED])
def test_an_answer_is_whole_only_with_its_last_byte(answer):
    assert all(answer_size(answer[:size]) is None for size in range(len(answer)))
    assert answer_size(answer) == len(answer)
    assert read_answer(answer).body == b"hello"
    assert read_answer(answer).status == 200


@pytest.mark.parametrize("form", FORMS.values(), ids=lambda form: form.name)
def test_every_form_of_a_request_has_all_its_bytes(form):
    arrays = {name: tensor.numpy() for name, tensor in draw(10, 3, 0).items()}
    head, _, body = form.request("/x", arrays).partition(b"\r\n\r\n")
    assert f"content-length: {len(body)}".encode() in head
    assert len(body) >= 3 * (FEATURES + TABLES)


def test_the_model_is_the_same_in_every_process_and_its_requests_too():
    assert all(np.array_equal(a, b) for a, b in zip(make(5).parameters(), make(5).parameters(), strict=True))
    assert not np.array_equal(make(5, seed=1).tables[0].weight, make(5).tables[0].weight)
    assert np.array_equal(draw(100, 4, 7)["ids"], draw(100, 4, 7)["ids"])
    assert not np.array_equal(draw(100, 4, 7)["ids"], draw(100, 4, 8)["ids"])


def test_contenders_take_turns_and_their_first_calls_do_not_count(monkeypatch):
    clock = count()
    monkeypatch.setattr(timing.time, "perf_counter", lambda: float(next(clock)))
    monkeypatch.setattr(timing, "SLICE_SECONDS", 10.0)
    called: list[str] = []
    cpu = count()
    contenders = [
        Contender(name, lambda _, name=name: called.append(name), lambda: float(next(cpu))) for name in ("a", "b")
    ]
    samples = measure(contenders, 40.0)
    changes = sum(before != after for before, after in pairwise(called))
    assert changes >= 5
    for name, sample in samples.items():
        assert len(sample.seconds) == sample.calls == called.count(name) - 5 * timing.UNCOUNTED - 9
        assert sample.quantile(0.5) == sample.fastest == 1.0
        assert sample.cpu_seconds == 4.0


@pytest.fixture
def echo(tmp_path):
    """Our HTTP server that always answers with 100 bytes."""
    port = free_port()
    command = [sys.executable, "-m", "benchmarks.serving.servers.echo", str(port), "100"]
    environment = {"PYTHONPATH": str(ROOT)}
    with ServerProcess(command, port=port, log=tmp_path / "log", environment=environment, folder=tmp_path) as server:
        yield server.wait(lambda: answers(port))


@pytest.mark.usefixtures("subprocesses")
def test_a_closed_loop_keeps_its_clients_busy_and_the_server_ends_with_its_block(echo):
    before = echo.cpu_seconds()
    flow = closed_loop(echo.port, [request_bytes("/", b"x" * 10, {})] * 3, clients=4, seconds=2)
    assert 0 < len(flow.sample.seconds) <= flow.answered
    assert 0 < flow.sample.quantile(0.5) <= flow.sample.quantile(0.99)
    assert echo.cpu_seconds() > before
    echo.end()
    with pytest.raises(ConnectionRefusedError):
        Connection(echo.port)


@pytest.mark.usefixtures("subprocesses")
def test_an_answer_that_is_no_200_is_no_figure(echo):
    with Connection(echo.port) as connection, pytest.raises(ConnectionError, match="400"):
        connection.exchange(b"nonsense\r\n\r\n")
    with pytest.raises(ConnectionError, match="400"):
        closed_loop(echo.port, [b"nonsense\r\n\r\n"], clients=1, seconds=0.5)


@pytest.mark.usefixtures("subprocesses")
def test_a_process_that_does_not_serve_is_told_with_its_last_line(tmp_path):
    command = [sys.executable, "-c", "import sys; sys.exit('it broke')"]
    server = ServerProcess(command, port=1, log=tmp_path / "log", environment={}, folder=tmp_path)
    with pytest.raises(RuntimeError, match="it broke"):
        server.wait(lambda: False)


@pytest.mark.usefixtures("subprocesses")
def test_our_answers_have_the_bits_of_the_eager_forward_and_wrong_ones_are_refused(tmp_path):
    reference = Reference(50)
    manifest = reference.export(tmp_path / WHOLE)
    with OwnServers(tmp_path) as own:
        host = own.host("host", {WHOLE: tmp_path / WHOLE})
        router = own.router("router", single_part_graph(WHOLE, manifest.signature), [host])
        for asked in [*on_host("host", host.server), *on_edge("router", [router, host.server])]:
            assert asked.check(reference, 3)
            with ExitStack() as stack:
                asked.contender(reference, 3, stack).call(0)
        with pytest.raises(RuntimeError, match="wrong answer at batch 3"):
            on_host("host", host.server)[0].check(Reference(50, seed=1), 3)


def test_a_peer_that_is_not_installed_is_a_row_in_each_part(tmp_path):
    asking = Asking(Reference(5), tmp_path, tmp_path / "nowhere", [1], 0.1, 2)
    rows = list(peer_rows(PEERS["kserve"], None, asking, latency=True, throughput=True))
    assert [(row.section, row.own) for row in rows] == [("peers", None), ("throughput", None)]
    assert all("--with kserve" in row.note for row in rows)


def test_a_new_run_replaces_the_rows_of_its_part_and_peer_only(tmp_path):
    report = Report(machine="m", rows_per_table=5)
    report = report.with_section("peers", [row("A", 2.0, beside="A"), row("A", 2.0, batch=64, beside="A")], "first")
    report = report.with_section("peers", [row("B", 3.0, beside="B")], "second")
    report = report.with_section("peers", [row("A", 4.0, beside="A")], "third")
    assert sorted((r.subject, r.own.p50) for r in report.rows) == [("A", 4.0), ("B", 3.0)]
    report.write(tmp_path / "deep" / "report.json")
    assert Report.at(tmp_path / "deep" / "report.json", 5) == report


def row(subject, p50, *, section="peers", batch=1, beside="A", qps=1.0, p99=None, **more) -> Row:
    own = Figures(fastest=p50, p50=p50, p99=p99 or p50, cpu=p50, calls=1, qps=qps)
    eager = Figures(fastest=1, p50=1, p99=1, cpu=1, calls=1, qps=1)
    values = {"form": "own JSON", "baseline": eager, "own": own} | more
    return Row(section=section, subject=subject, batch=batch, beside=beside, **values)


def test_a_section_that_fails_is_named_and_the_others_are_written(tmp_path):
    def fail():
        msg = "no server"
        raise OSError(msg)
        yield

    rows = (Row(section="ours", subject="V2 JSON", batch=1),)
    path = tmp_path / "report.json"
    report, missing = measure_sections([("split", fail()), ("ours", iter(rows))], Report.at(path, 100), path)
    assert missing == ["split"]
    assert report.rows == Report.at(path, 100).rows == rows


def test_the_best_peer_is_the_one_nearest_to_ours_in_its_own_turns():
    ours = {"form": "V2 JSON"}
    rows = [row("A", 2.0), row(OURS, 1.0, **ours), row("B", 3.0, beside="B"), row(OURS, 2.5, beside="B", **ours)]
    report = Report(machine="m", rows_per_table=5, rows=tuple(rows))
    assert best_peer(report, 1, ["own JSON"]) == pytest.approx(3.0 / 2.5)
    assert best_peer(report, 64, ["own JSON"]) is None


def test_ours_at_equal_p99_is_the_most_qps_that_is_not_slower_than_the_peer():
    flow = {"section": "throughput", "form": "V2 JSON"}
    peer = row("A", 1.0, section="throughput", qps=10, p99=5, clients=32)
    ours = [row(OURS, 1.0, qps=q, p99=p, clients=c, **flow) for c, q, p in ((32, 40, 6), (16, 30, 5), (8, 20, 2))]
    report = Report(machine="m", rows_per_table=5, rows=(peer, *ours))
    assert at_equal_p99(report, peer).clients == 16
    assert throughput_gain(report, 1) == pytest.approx(3.0)
    slow = Report(machine="m", rows_per_table=5, rows=(peer, ours[0]))
    assert throughput_gain(slow, 1) is None
    _, [line] = throughput(slow)
    assert "**" not in "".join(line)


def test_anchors_are_no_peers_of_throughput():
    anchor = row("uvicorn (anchor)", 1.0, section="throughput", beside="U", qps=100, p99=5)
    peer = row("A", 1.0, section="throughput", qps=10, p99=5)
    ours = [row(OURS, 1.0, section="throughput", beside=b, qps=50, p99=5) for b in ("U", "A")]
    assert throughput_gain(Report(machine="m", rows_per_table=5, rows=(anchor, peer, *ours)), 1) == 5.0


def test_the_page_is_filled_where_there_are_rows_and_only_there():
    rows = (row("A", 2.0), row(OURS, 1.0, form="V2 JSON"), row("B", 3.0, beside="B", own=None, note="not | measured"))
    report = Report(machine="m", rows_per_table=5, rows=rows, commands={"peers": "python x"})
    page = "".join(f"<!-- measured: {name} -->old {name}<!-- end -->" for name in BLOCKS)
    written = rewritten(page, report)
    assert "old peers" not in written
    assert "old split" in written
    assert "**2.00**" in written
    assert "not / measured" in written
    assert "`python x`" in written
    assert rewritten(written, report) == written
    head, lines = peers(report)
    assert {len(line) for line in lines} == {len(head)}
    head, lines = targets(report)
    assert {len(line) for line in lines} == {len(head)}


def test_every_line_of_a_table_has_all_columns():
    rows = [
        row("A", 2.0, section=section, note="n") for section in ("ours", "split", "layers", "throughput", "release")
    ]
    rows += [row("A", 2.0, section="throughput", own=None, note="n")]
    report = Report(machine="m", rows_per_table=5, rows=tuple(rows))
    for block in BLOCKS.values():
        head, lines = block(report)
        assert {len(line) for line in lines} <= {len(head)}


def test_the_page_has_every_block_and_names_every_peer():
    page = PAGE.read_text(encoding="utf-8")
    for name in BLOCKS:
        _, rest = page.split(f"<!-- measured: {name} -->")
        assert "<!-- end -->" in rest
    assert (
        "--with " + ",".join(name for name in ("kserve", "mlserver", "litserve", "bentoml", "rayserve", "fastapi"))
        in page
    )
    assert {peer.environment for peer in PEERS.values()} == set(ENVIRONMENTS)
    assert all("==" in package for packages in ENVIRONMENTS.values() for package in packages)
    assert all((Path(peer_list.__file__).parent / "peers" / f"{peer.module}.py").is_file() for peer in PEERS.values())


def test_a_server_of_ours_and_of_a_peer_are_asked_by_the_same_client():
    forms = {form.name for peer in PEERS.values() for form in peer.forms}
    assert forms <= set(FORMS)
    asked = Asked("x", [ServerOnPort()], "/x", FORMS["V2 JSON"], {"a": "b"})
    assert all(request.startswith(b"POST /x HTTP/1.1\r\n") for request in asked.written(Reference(5), 1))


class ServerOnPort:
    port = 1
