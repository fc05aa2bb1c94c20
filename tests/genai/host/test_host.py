"""The host of generative parts, with the mock engine.

What is ready, what fails and why, and that nothing is left behind.
"""

import re
import signal
import threading

import httpx
import pytest

from ipnext.infra.host.log_retention import LogLimits, LogRetention
from tests.genai.support.hosts import complete, mock_command, stream
from tests.processes import gone
from tests.waiting import PATIENCE_SECONDS, until

RUNS_ONE = r'num_requests_running\{engine="0",model_name="chat@\w+"\} 1'
MOCK = {"IPNEXT_VLLM_COMMAND": mock_command()}
MEGA = 10**6


@pytest.fixture
def host(yard):
    return yard.start("host", **MOCK)


def in_thread(function):
    found = []
    thread = threading.Thread(target=lambda: found.append(function()), daemon=True)
    thread.start()
    return thread, found


def test_a_snapshot_is_ready_once_its_engine_answers_at_a_url_of_its_own(host, shelf):
    answer = host.hold(shelf.hold(1, 4, 5), shelf.hold(2, 6))
    assert answer.status_code == 202
    state = until(lambda: (s := host.state()) and len(s.ready) == 3 and s)
    urls = {one.generation: one.url for one in state.ready}
    assert urls[4] == urls[5] != urls[6]
    assert [complete(url).status_code for url in urls.values()] == [200, 200, 200]
    assert {(one.snapshot, one.size_bytes) for one in state.memory.snapshots} == {
        (number, (shelf.root / f"hf-{number}" / "model.safetensors").stat().st_size) for number in (1, 2)
    }
    assert until(lambda: host.state().memory.used_bytes > 60 * MEGA)


def test_an_embedding_part_is_ready_once_it_has_embedded(host, shelf):
    host.hold(shelf.hold(3, settings={"runner": "pooling"}))
    (ready,) = host.ready().ready
    answer = httpx.post(f"{ready.url}/v1/embeddings", json={"model": "chat", "input": "a"}, timeout=60)
    assert answer.json()["data"][0]["embedding"]


def test_a_canary_that_is_refused_never_becomes_ready(yard, shelf):
    host = yard.start(
        "host", IPNEXT_VLLM_COMMAND=mock_command().replace("{model}", "another").replace("{name}", "another")
    )
    host.hold(shelf.hold(1))
    (failure,) = host.failed()
    assert failure.code == "LoadFailed"
    assert "canary request to /v1/completions was answered 404" in failure.message
    assert not host.state().ready


REFUSED = [{"environment": {"LD_PRELOAD": "/tmp/blob"}}, {"extraArgs": ["--trust-remote-cod"]}]


@pytest.mark.parametrize("settings", REFUSED)
def test_a_host_starts_no_engine_with_settings_that_may_load_code(yard, shelf, settings):
    host = yard.start("host", **MOCK)
    host.hold(shelf.hold(1, settings=settings))
    (failure,) = host.failed()
    assert failure.code == "LoadFailed"
    assert "is not allowed in a manifest" in failure.message
    assert not host.engines()


def test_who_runs_a_host_may_allow_a_variable(yard, shelf):
    host = yard.start("host", "--allow-environment=GREETING", **MOCK)
    host.hold(shelf.hold(1, settings={"environment": {"GREETING": "hello"}}))
    host.ready()
    assert [one for one in host.engines() if one.environ().get("GREETING") == "hello"]


def test_an_engine_that_is_not_up_in_time_is_ended_and_told(yard, shelf):
    host = yard.start("host", IPNEXT_VLLM_COMMAND="sleep 1000")
    host.hold(shelf.hold(1, settings={"startSeconds": 1}))
    (failure,) = host.failed()
    assert "was not ready within startSeconds, 1 s" in failure.message


def starts(host):
    return [(one.part, one.snapshot, one.stage, one.output) for one in host.state().starts]


def test_an_engine_that_loads_its_model_says_so_with_the_last_line_of_its_log(yard, shelf):
    said = r"printf '\033[32mINFO\033[0m Loading weights\n\n'"
    host = yard.start("host", IPNEXT_VLLM_COMMAND=f'sh -c "{said}; sleep 1000"')
    host.hold(shelf.hold(1))
    until(lambda: starts(host) == [("llm", 1, "loading", "INFO Loading weights")])
    (first,) = host.state().starts
    assert until(lambda: [one for one in host.state().starts if one.seconds > first.seconds + 0.2])
    assert host.state().loading


def test_the_log_of_an_engine_is_put_aside_while_it_runs_and_goes_on(yard, shelf, tmp_path):
    more = tmp_path / "more"
    script = f"echo before; while [ ! -e {more} ]; do sleep 0.05; done; echo after; sleep 1000"
    host = yard.start("host", IPNEXT_VLLM_COMMAND=f"sh -c '{script}'")
    host.hold(shelf.hold(1))
    until(lambda: starts(host) == [("llm", 1, "loading", "before")])
    (file,) = (host.root / "logs").glob("*.engine-*.log")
    LogRetention(file.parent, LogLimits(keep_seconds=1e9, keep_bytes=1, file_bytes=1, look_seconds=1)).look()
    more.touch()
    until(lambda: file.read_text() == "after\n")
    assert not file.with_name(f"{file.name}.1").exists(), "it is beyond what all may have together"


def test_an_engine_whose_first_answer_is_slow_says_that_it_is_asked_and_then_no_more(yard, shelf):
    host = yard.start("host", IPNEXT_VLLM_COMMAND=mock_command(ttft_ms=6000))
    host.hold(shelf.hold(1))
    seen = set()

    def note():
        seen.update(stage for _, _, stage, _ in starts(host))
        return host.state().ready

    until(note)
    assert {"loading", "canary"} <= seen
    assert host.state().starts == ()


def test_an_engine_that_waits_for_the_memory_of_one_that_leaves_says_so(yard, shelf):
    host = yard.start("host", "--memory-bytes", str(3000 * MEGA), IPNEXT_VLLM_COMMAND=mock_command(itl_ms=100))
    host.hold(shelf.hold(1))
    (ready,) = host.ready().ready
    running, _ = in_thread(lambda: list(stream(ready.url, tokens=60)))
    until(lambda: "running{" in (text := httpx.get(f"{ready.url}/metrics", timeout=60).text) and " 1" in text)
    host.hold(shelf.hold(2), drain_seconds=60)
    until(lambda: starts(host) == [("llm", 2, "waiting", None)])
    running.join(PATIENCE_SECONDS)
    assert host.ready().ready[0].snapshot == 2


def test_an_engine_that_died_and_is_started_again_says_how_far_it_is_too(yard, shelf, tmp_path):
    marker = tmp_path / "died"
    script = f"if [ -e {marker} ]; then echo again; sleep 1000; fi; touch {marker}; exit 3"
    host = yard.start("host", f"--writable={tmp_path}", IPNEXT_VLLM_COMMAND=f"sh -c '{script}'")
    host.hold(shelf.hold(1))
    until(lambda: starts(host) == [("llm", 1, "loading", "again")])
    assert "ended with status 3" in host.state().failures[0].message


def test_the_last_lines_of_a_failed_start_are_in_the_message(yard, shelf):
    host = yard.start("host", IPNEXT_VLLM_COMMAND="sh -c 'echo no such device; exit 3'")
    host.hold(shelf.hold(1))
    (failure,) = host.failed()
    assert "ended with status 3" in failure.message
    assert "no such device" in failure.message


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"maxModelLength": 1}, "settings.maxModelLength: unknown for engine vllm (got 1); allowed: maxModelLen"),
        ({"maxModelLen": 65}, "maxModelLen: 65 is more than the 64 positions of the checkpoint"),
        ({"tensorParallelSize": 3}, "tensorParallelSize: 3 does not divide the 4 attention heads"),
    ],
)
def test_settings_that_do_not_fit_are_refused_before_an_engine_starts(host, shelf, settings, told):
    host.hold(shelf.hold(1, settings=settings))
    (failure,) = host.failed()
    assert told in failure.message
    assert not host.engines()


def test_a_manifest_that_tells_other_facts_than_its_files_is_refused(host, shelf, tmp_path):
    source = shelf.published[1]
    facts = source.manifest.checkpoint.model_copy(update={"parameters": 7})
    uri = shelf.store.commit(source.manifest.model_copy(update={"checkpoint": facts}))
    host.hold(shelf.hold(1, digest=uri.rpartition("/")[2], uri=uri))
    (failure,) = host.failed()
    assert "snapshot.json says checkpoint.parameters 7; the files say" in failure.message


def test_where_there_is_no_vllm_the_failure_says_how_to_get_it(yard, shelf, tmp_path):
    host = yard.start("host", IPNEXT_VLLM_PYTHON=str(tmp_path / "nothing"))
    host.hold(shelf.hold(1))
    (failure,) = host.failed()
    assert "IPNEXT_VLLM_PYTHON" in failure.message


def test_an_engine_that_dies_leaves_ready_is_told_and_comes_back(host, shelf):
    host.hold(shelf.hold(1))
    before = host.ready().ready
    (engine,) = [p for p in host.engines() if p.ppid() != host.process.pid]
    engine.kill()
    failure = until(lambda: host.state().failures)[0]
    assert not host.state().ready or host.state().ready != before
    assert "ended by SIGKILL; starting it again" in failure.message
    state = host.ready()
    assert not state.failures
    assert complete(state.ready[0].url).status_code == 200
    assert (host.root / "logs" / f"host.engine-{shelf.published[1].manifest.digest:.8}.log.1").exists()
    assert (
        'ipnext_engine_restarts_total{model="chat",part="llm",region="north",snapshot="1"} 1.0'
        in httpx.get(f"{host.url}/metrics", timeout=60).text
    )


@pytest.mark.parametrize("names_signers_later", [False, True])
def test_an_engine_that_died_does_not_start_with_files_that_changed_in_the_cache(host, shelf, names_signers_later):
    guarded = shelf.hold(1, is_cut_from_signed=True)
    host.hold(shelf.hold(1) if names_signers_later else guarded)
    host.ready()
    host.hold(guarded)
    file, content = host.forge(shelf.published[1])
    (engine,) = [p for p in host.engines() if p.ppid() != host.process.pid]
    engine.kill()
    changed = "could not be started: config.json of snapshot"
    until(lambda: any(changed in failure.message for failure in host.state().failures))
    assert not host.state().ready
    file.write_bytes(content)
    assert host.ready().ready


def test_no_engine_starts_with_files_that_changed_in_the_cache(yard, shelf):
    host = yard.start("host", IPNEXT_VLLM_COMMAND=mock_command())
    shelf.store.fetch(shelf.published[1].uri, host.root / "cache")
    host.forge(shelf.published[1])
    host.hold(shelf.hold(1, is_cut_from_signed=True))
    (failure,) = host.failed()
    assert (failure.code, "is not the file of its manifest" in failure.message) == ("ArtifactDigestMismatch", True)


def test_a_dropped_snapshot_is_ended_only_when_its_last_stream_has(yard, shelf):
    host = yard.start("host", IPNEXT_VLLM_COMMAND=mock_command(itl_ms=50))
    host.hold(shelf.hold(1, settings={"graceSeconds": 0.3}))  # so short that a stream would be cut
    url = host.ready().ready[0].url
    engines = host.engines()
    thread, pieces = in_thread(lambda: list(stream(url, tokens=120)))
    until(lambda: re.search(RUNS_ONE, httpx.get(f"{url}/metrics", timeout=60).text))
    host.hold()
    assert not host.state().ready
    assert not gone(engines)
    thread.join()
    assert len(pieces[0]) == 120
    until(lambda: gone(engines))


def test_a_drain_limit_ends_what_goes_on_for_too_long(yard, shelf):
    host = yard.start("host", IPNEXT_VLLM_COMMAND=mock_command(itl_ms=1000))
    host.hold(shelf.hold(1, settings={"graceSeconds": 1}))
    url = host.ready().ready[0].url
    engines = host.engines()
    answer = stream(url, tokens=1000)
    next(answer)
    host.hold(drain_seconds=0.5)
    until(lambda: gone(engines))


def test_the_directory_where_two_parts_meet_is_there_while_either_has_an_engine(yard, shelf):
    host = yard.start("host", IPNEXT_VLLM_COMMAND=mock_command())
    holds = {
        role: shelf.hold(1, part=role, settings={"kvTransfer": {"connector": "example", "role": role}})
        for role in ("prefill", "decode")
    }
    place = yard.root / "transfer" / f"{holds['prefill'].digest}-auto"
    host.hold(*holds.values())
    until(lambda: len(host.state().ready) == 2)
    (place / "kept").write_text("x")
    host.hold(holds["decode"])
    until(lambda: len(host.engines()) == 2)  # keeper and engine
    assert (place / "kept").exists()
    host.hold()
    until(lambda: not place.exists())


def test_a_drained_host_counts_what_its_engines_work_on(yard, shelf):
    host = yard.start("host", IPNEXT_VLLM_COMMAND=mock_command(itl_ms=50))
    host.hold(shelf.hold(1))
    url = host.ready().ready[0].url
    thread, _ = in_thread(lambda: list(stream(url, tokens=120)))
    until(lambda: re.search(RUNS_ONE, httpx.get(f"{url}/metrics", timeout=60).text))
    drained = httpx.post(f"{host.url}/control/drain", timeout=60).json()
    assert (drained["draining"], drained["in_flight"]) == (True, 1)
    thread.join()
    until(lambda: host.state().in_flight == 0)


def test_an_engine_that_does_not_answer_counts_as_busy_and_holds_nobody_up(host, shelf):
    host.hold(shelf.hold(1))
    host.ready()
    assert httpx.post(f"{host.url}/control/drain", timeout=60).json()["in_flight"] == 0
    (engine,) = [p for p in host.engines() if p.ppid() != host.process.pid]
    engine.suspend()
    try:
        assert host.state().in_flight == 1
    finally:
        engine.resume()
    until(lambda: host.state().in_flight == 0)


def test_a_second_engine_that_does_not_fit_is_refused_and_fits_once_the_first_has_left(yard, shelf):
    host = yard.start("host", "--memory-bytes", str(2500 * MEGA), **MOCK)
    host.hold(shelf.hold(1))
    host.ready()
    host.hold(shelf.hold(1), shelf.hold(2))
    (failure,) = host.failed()
    assert (failure.code, failure.snapshot) == ("MemoryExceeded", 2)
    assert "of the host's 2,500 MB are in use. Raise memoryBytes, lower kvCacheGib" in failure.message
    host.hold()
    host.hold(shelf.hold(2))
    assert [one.snapshot for one in host.ready().ready] == [2]


def test_keys_and_values_count_as_memory(yard, shelf):
    host = yard.start("host", "--memory-bytes", str(2500 * MEGA), **MOCK)
    host.hold(shelf.hold(1, settings={"kvCacheGib": 1}))
    (failure,) = host.failed()
    assert failure.code == "MemoryExceeded"


def test_nothing_is_left_of_a_host_that_ends(host, shelf):
    host.hold(shelf.hold(1))
    host.ready()
    family = host.family()
    assert host.end() == 0
    assert gone(family)


@pytest.fixture
def streaming(yard, shelf):
    """A host told how long its requests may go on when it ends, one of its streams, and all its processes."""

    def start(tokens, **drains):
        host = yard.start("host", IPNEXT_VLLM_COMMAND=mock_command(itl_ms=50))
        host.hold(shelf.hold(1, settings={"graceSeconds": 0.3}), **drains)  # so short that a stream would be cut
        url = host.ready().ready[0].url
        running, pieces = in_thread(lambda: read(url, tokens))
        until(lambda: re.search(RUNS_ONE, httpx.get(f"{url}/metrics", timeout=60).text))
        host.process.terminate()
        return host, running, pieces, host.family()

    return start


def read(url, tokens):
    """How many pieces came of a stream; the error where it broke."""
    try:
        return len(list(stream(url, tokens=tokens)))
    except httpx.HTTPError as error:
        return error


def test_a_host_that_is_told_to_end_finishes_its_streams_and_says_that_it_drains(streaming):
    host, running, pieces, family = streaming(120)
    assert until(lambda: (s := host.state()).draining and s).in_flight == 1
    running.join()
    assert pieces == [120]
    assert host.process.wait(PATIENCE_SECONDS) == 0
    assert gone(family)


def test_a_host_that_is_told_to_end_waits_no_longer_than_the_drain(streaming):
    host, running, pieces, family = streaming(5000, ending_seconds=1.5)
    assert host.process.wait(PATIENCE_SECONDS) == 0
    running.join()
    assert isinstance(pieces[0], httpx.HTTPError)
    assert gone(family)


def test_a_host_that_is_told_to_end_twice_ends_at_once_and_leaves_nothing(streaming):
    host, running, pieces, family = streaming(5000)
    until(lambda: host.state().draining)
    host.process.terminate()
    assert host.process.wait(PATIENCE_SECONDS) == 0
    until(lambda: gone(family))
    running.join()
    assert isinstance(pieces[0], httpx.HTTPError)


def test_nothing_is_left_of_a_host_that_is_killed(host, shelf):
    host.hold(shelf.hold(1), shelf.hold(2))
    until(lambda: len(host.state().ready) == 2)
    family = host.family()
    assert len(host.engines()) >= 2
    host.process.send_signal(signal.SIGKILL)
    host.process.wait()
    until(lambda: gone(family))


def test_bad_holds_are_refused_and_what_was_held_stays(host, shelf):
    host.hold(shelf.hold(1))
    host.ready()
    answer = host.hold(shelf.hold(1, 1), shelf.hold(2, 1))
    assert answer.status_code == 400
    assert "generation 1 of chat.llm has two snapshots" in answer.json()["error"]
    assert len(host.state().ready) == 1
    assert httpx.get(f"{host.url}/other", timeout=60).status_code == 404
