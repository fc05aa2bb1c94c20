"""Hot swaps on the whole platform under streaming clients.

On real vLLM in tests/genai/platform/test_swap.py, with the mock engine in tests/e2e/test_swap.py.
"""

import re
from collections import Counter
from contextlib import contextmanager

from tests.genai.platform.test_platform import MANIFEST, REGION, START_SECONDS
from tests.genai.support.hosts import stream
from tests.genai.support.streaming_clients import STREAMS, StreamingClients
from tests.processes import command_line, get_from

MODEL = "going-over"
SWAP = MANIFEST.replace("name: chat", f"name: {MODEL}")
SWAP = SWAP.replace("rollout: {canary: 1, maxStep: 1,", "rollout: {refresh: swap, canary: 0.1, maxStep: 0.5,")
TWO = SWAP.replace("      settings:", "      minReplicas: 2\n      settings:")
LONG = 400
"""Tokens of a stream that goes on for some seconds."""


class Bed:
    """A platform, what tells its engine processes from others, and checkpoints of one form."""

    def __init__(self, running, words, checkpoints):
        self.running, self.words, self.checkpoints = running, words, checkpoints
        self.client, self.url = running.client, running.endpoints["gateways"][REGION]

    def publish(self, seed):
        return self.done(self.client.publish(MODEL, {"llm": self.checkpoints[seed]}))

    def done(self, change):
        ended = self.client.wait_change(change.id, timeout_seconds=START_SECONDS)
        assert ended.state == "done", ended.message
        return ended

    def engines(self):
        """Process ids of the engines, by their start."""
        found = [p for p in self.running.found(*self.words) if "process_reaper.py" not in command_line(p)]
        return {(p.pid, p.create_time()) for p in found}


def check(clients, generations):
    """No stream broken, none of two generations, and each generation's texts its own."""
    assert clients.broken == []
    assert set(Counter(generation for _, generation, _ in clients.whole)) == generations
    texts = {}
    for number, generation, text in clients.whole:
        texts.setdefault((number, generation), set()).add(text)
    assert {len(found) for found in texts.values()} == {1}, "greedy answers of one generation are equal"
    for number in range(STREAMS):
        assert len({min(texts[number, g]) for g in generations if (number, g) in texts}) == len(
            {g for g in generations if (number, g) in texts}
        )


def under_way(router):
    """Streams of generation 1 that have not come from their engine to their end, by the router's own count."""
    text = get_from(router, "/metrics").text
    found = re.findall(r'^ipnext_requests_in_flight\{generation="1",model="going-over".*\} (\S+)$', text, re.MULTILINE)
    assert len(found) == 1, text
    return float(found[0])


@contextmanager
def serving_first(bed):
    """Generation 1 serves, by one engine."""
    bed.client.apply(SWAP)
    bed.publish(1)
    yield bed
    bed.done(bed.client.delete(MODEL))


class SwapConformance:
    """What engines and platform are held to. `first` is a fixture of the module: what `serving_first` gives."""

    def test_one_engine_goes_over_and_back_and_its_clients_wait_for_it(self, first, record_property):
        engines = first.engines()
        assert len(engines) == 1
        with StreamingClients(first.url, MODEL) as clients:
            first.publish(2)
            clients.await_answers()
            first.done(first.client.rollback(MODEL, generation=1))
        check(clients, {"1", "2"})
        assert first.engines() == engines, "the same process, and no other one"
        record_property("longest_gap_seconds", max(clients.gaps))
        told = [event.message for event in first.client.events(MODEL) if event.kind == "Admitted"]
        assert "generation 2: swaps 1 replica; dips llm in us-east by 100% for seconds" in told

    def test_a_host_is_not_told_before_the_last_stream_of_the_former_generation_has_ended(self, first):
        """So no request that was on its way gets the new weights under the old generation's number."""
        host, *_ = first.running.found("serving.genai.host", f"--id {MODEL}.llm.")
        router, *_ = first.running.found("serving.router", "--region us-east")
        whole = "".join(text for text, _ in stream(first.url, tokens=LONG, model=MODEL))
        begun = stream(first.url, tokens=LONG, model=MODEL)
        pieces = [next(begun)[0]]
        change = first.client.publish(MODEL, {"llm": first.checkpoints[2]})
        for text, _ in begun:
            pieces.append(text)
            if len(pieces) % 20 == 0:
                told = get_from(host, "/control/state").json()
                if (
                    told["swaps"] and told["swaps"][-1]["state"] == "swapping"
                ):  # what is left was on its way to the client then
                    assert under_way(router) == 0
        assert "".join(pieces) == whole
        first.done(change)
        first.done(first.client.rollback(MODEL, generation=1))

    def test_of_two_engines_one_answers_while_the_other_goes_over(self, first, record_property):
        (applied,) = first.client.apply(TWO)
        first.done(applied.change)
        engines = first.engines()
        assert len(engines) == 2
        with StreamingClients(first.url, MODEL) as clients:
            done = first.publish(2)
            clients.await_answers()
        check(clients, {"1", str(done.generation)})
        assert first.engines() == engines
        record_property("longest_gap_seconds", max(clients.gaps))
