"""Engines of a host that go over from one snapshot to another, with the mock engine."""

import threading
import time

import httpx
import psutil
import pytest

from ipnext.model.deployment.host_control import HostHolds
from tests.genai.support.checkpoints import llama_tensors, write_llama
from tests.genai.support.hosts import complete, mock_command, stream
from tests.waiting import until


def environment(**options):
    return {"IPNEXT_VLLM_COMMAND": mock_command(weights="{directory}", **options)}


@pytest.fixture
def start(yard, shelf):
    """A host that holds snapshot 1, by generation 1, and may let it go over."""

    def start(swap=True, flags="", **options):
        told = environment(**options)
        host = yard.start("host", IPNEXT_VLLM_COMMAND=told["IPNEXT_VLLM_COMMAND"] + flags)
        host.hold(shelf.hold(1, swap=swap))
        host.ready()
        return host

    return start


def text(host):
    """What the only engine answers, and for which snapshot."""
    (ready,) = host.ready().ready
    return ready.snapshot, complete(ready.url).json()["choices"][0]["text"]


def pid(host):
    (engine,) = [p for p in host.engines() if p.ppid() != host.process.pid]
    return engine.pid


def prepare(host, hold, *coming):
    body = HostHolds(holds=(hold,), coming=coming).model_dump_json()
    assert httpx.put(f"{host.url}/control/holds", content=body, timeout=60).status_code == 202


def swapped(host):
    return [(swap.former, swap.snapshot, swap.state) for swap in host.state().swaps]


def test_an_engine_goes_over_in_its_process_and_back(start, shelf):
    host = start()
    (first, engine, url) = text(host), pid(host), host.state().ready[0].url
    host.hold(shelf.hold(2, swap=True))
    until(lambda: swapped(host) == [(1, 2, "swapped")])
    second = text(host)
    assert (first[0], second[0]) == (1, 2)
    assert first[1] != second[1]
    assert (pid(host), host.state().ready[0].url) == (engine, url)
    assert httpx.get(f"{url}/weight_info", timeout=60).json() == {"weight_version": shelf.published[2].manifest.digest}
    assert httpx.get(f"{url}/is_paused", timeout=60).json() == {"is_paused": False}
    host.hold(shelf.hold(1, swap=True))
    until(lambda: swapped(host) == [(2, 1, "swapped")])
    assert (text(host), pid(host)) == (first, engine)
    assert not host.state().failures


def test_what_is_coming_is_fetched_while_the_former_snapshot_answers(start, shelf):
    host = start()
    prepare(host, shelf.hold(1, swap=True), shelf.hold(2, swap=True))
    state = until(lambda: (s := host.state()).fetched and s)
    assert state.fetched == (shelf.published[2].manifest.digest,)
    assert [one.snapshot for one in state.ready] == [1]
    assert state.swaps == ()
    host.hold(shelf.hold(1, swap=True))
    assert host.state().fetched == ()


def test_what_was_fetched_and_changed_in_the_cache_since_is_not_gone_over_to(start, shelf):
    host = start()
    prepare(host, shelf.hold(1, swap=True), shelf.hold(2, swap=True))
    until(lambda: host.state().fetched)
    host.forge(shelf.published[2])
    host.hold(shelf.hold(2, swap=True, is_cut_from_signed=True))
    (failure,) = host.failed()
    assert (failure.snapshot, failure.code) == (2, "ArtifactDigestMismatch")


def test_what_is_coming_and_cannot_be_served_is_told_while_the_former_snapshot_answers(start, shelf, tmp_path):
    host = start()
    source = shelf.published[2]
    facts = source.manifest.checkpoint.model_copy(update={"parameters": 7})
    uri = shelf.store.commit(source.manifest.model_copy(update={"checkpoint": facts}))
    prepare(host, shelf.hold(1, swap=True), shelf.hold(2, digest=uri.rpartition("/")[2], uri=uri, swap=True))
    (failure,) = host.failed()
    assert (failure.snapshot, "snapshot.json says checkpoint.parameters 7" in failure.message) == (2, True)
    assert [one.snapshot for one in host.state().ready] == [1]
    assert host.state().fetched == ()


def test_an_engine_that_goes_over_is_not_ready_and_finishes_what_it_has_with_the_old_weights(start, shelf):
    host = start(itl_ms=20)
    ready = host.state().ready[0]
    whole = "".join(piece for piece, _ in stream(ready.url, tokens=200))
    begun = stream(ready.url, tokens=200)
    first = next(begun)[0]
    rest = []
    reading = threading.Thread(target=lambda: rest.extend(piece for piece, _ in begun))
    reading.start()
    host.hold(shelf.hold(2, swap=True))
    state = host.state()
    assert state.ready == ()
    assert [one.snapshot for one in state.loading] == [2]
    assert swapped(host) == [(1, 2, "swapping")]
    reading.join()
    assert "".join([first, *rest]) == whole
    assert text(host)[0] == 2


@pytest.mark.parametrize(
    ("told", "saved_by", "state"),
    [({"rope_theta": 5.0}, "4.57", "started_anew"), ({}, "5.0", "swapped")],
    ids=["another configuration", "another version of who saved it"],
)
def test_what_an_engine_reads_as_it_starts_has_to_be_the_same(start, shelf, tmp_path, told, saved_by, state):
    """Else it would answer as neither snapshot does, until it is started again."""
    checkpoint = write_llama(tmp_path / "hf", seed=5, transformers_version=saved_by, **told)
    number = 200 + len(told)
    shelf.publish(number, checkpoint)
    host = start()
    host.hold(shelf.hold(number, swap=True))
    until(lambda: swapped(host) == [(1, number, state)])
    (swap,) = host.state().swaps
    assert ("config.json as it starts" in (swap.message or "")) == (state == "started_anew")
    assert text(host)[0] == number


def test_a_request_that_comes_meanwhile_waits_at_the_engine(start, shelf):
    host = start(reload_ms=3000)
    ready = host.state().ready[0]
    before = text(host)[1]
    host.hold(shelf.hold(2, swap=True))
    until(lambda: httpx.get(f"{ready.url}/is_paused", timeout=60).json()["is_paused"])
    answer = complete(ready.url)
    assert answer.status_code == 200
    assert answer.json()["choices"][0]["text"] != before


def test_an_engine_that_dies_after_it_went_over_starts_with_what_it_had(start, shelf):
    host = start()
    host.hold(shelf.hold(2, swap=True))
    until(lambda: swapped(host) == [(1, 2, "swapped")])
    told = text(host)
    (engine,) = [p for p in host.engines() if p.ppid() != host.process.pid]
    engine.kill()
    until(lambda: host.state().failures)
    assert text(host) == told
    assert pid(host) != engine.pid


def test_an_engine_that_fails_to_go_over_is_ended_and_one_with_the_snapshot_is_started(start, shelf):
    host = start(flags=" --broken-reload")
    engine, before = pid(host), text(host)[1]
    host.hold(shelf.hold(2, swap=True))
    (swap,) = until(lambda: [s for s in host.state().swaps if s.state == "started_anew"])
    assert "collective_rpc answered 500" in swap.message
    assert not host.state().failures, "nobody shall go back for this"
    snapshot, after = text(host)
    assert (snapshot, after != before, pid(host) != engine) == (2, True, True)
    assert '"event": "engine could not go over, started anew"' in (host.root / "host.log").read_text()


def test_an_engine_that_dies_while_it_goes_over_is_started_with_the_snapshot(start, shelf):
    host = start(reload_ms=3000)
    (engine,) = [p for p in host.engines() if p.ppid() != host.process.pid]
    url = host.state().ready[0].url
    host.hold(shelf.hold(2, swap=True))
    until(lambda: httpx.get(f"{url}/is_paused", timeout=60).json()["is_paused"])
    engine.kill()
    assert text(host)[0] == 2
    assert swapped(host) == [(1, 2, "started_anew")]


def test_weights_of_another_form_get_an_engine_of_their_own(start, shelf):
    if 9 not in shelf.published:
        tensors = llama_tensors(9)
        tensors = {name: tensor.astype("float16") for name, tensor in tensors.items()}
        shelf.publish(9, write_llama(shelf.root / "hf-9", tensors=tensors, torch_dtype="float16"))
    host = start()
    engine = pid(host)
    host.hold(shelf.hold(9, swap=True))
    (swap,) = until(lambda: [s for s in host.state().swaps if s.state == "started_anew"])
    assert "other names, dtypes or shapes" in swap.message
    assert text(host)[0] == 9
    assert pid(host) != engine


def test_without_the_routes_that_change_weights_an_engine_is_started_anew(start, shelf):
    """One that was started before its deployment said swap; and those routes are closed until then."""
    host = start(swap=False)
    assert httpx.post(f"{host.state().ready[0].url}/resume", timeout=60).status_code == 404
    host.hold(shelf.hold(2, swap=True))
    (swap,) = until(lambda: [s for s in host.state().swaps if s.state == "started_anew"])
    assert "started without the routes" in swap.message
    assert text(host)[0] == 2
    assert httpx.post(f"{host.state().ready[0].url}/resume", timeout=60).status_code == 200


def test_other_settings_get_an_engine_of_their_own(start, shelf):
    host = start()
    host.hold(shelf.hold(2, swap=True, settings={"maxModelLen": 32}))
    assert text(host)[0] == 2
    assert host.state().swaps == ()


def test_a_change_of_mind_on_the_way_is_followed_by_the_same_engine(start, shelf):
    host = start(reload_ms=500)
    engine, first = pid(host), text(host)
    host.hold(shelf.hold(2, swap=True))
    host.hold(shelf.hold(1, swap=True))
    until(lambda: swapped(host) == [(2, 1, "swapped")])
    assert (text(host), pid(host)) == (first, engine)
    host.hold(shelf.hold(2, swap=True))
    host.hold(shelf.hold(1, swap=True))
    host.hold(shelf.hold(2, swap=True))
    until(lambda: swapped(host) == [(1, 2, "swapped")])
    time.sleep(0.2)
    assert (text(host)[0], pid(host), swapped(host)) == (2, engine, [(1, 2, "swapped")])


def test_an_engine_that_nothing_wants_when_it_arrives_ends(start, shelf):
    host = start()
    engine = psutil.Process(pid(host))
    engine.suspend()  # it arrives after the second order, however fast it is
    host.hold(shelf.hold(2, swap=True))
    host.hold()
    assert swapped(host) == [(1, 2, "swapping")]
    engine.resume()
    until(lambda: not host.engines())
    until(lambda: (host.state().ready, host.state().swaps) == ((), ()))


def test_an_engine_that_serves_adapters_does_not_go_over(start, shelf):
    """They were made for the weights that it has."""
    host = start(flags=" --beside style")
    host.hold(shelf.hold(2, swap=True))
    (swap,) = until(lambda: [s for s in host.state().swaps if s.state == "started_anew"])
    assert "it serves ['style'] beside the model" in swap.message
    assert text(host)[0] == 2
