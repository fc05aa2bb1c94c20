"""Adapters in a whole region.

What the agent tells of one that an engine does not take, and when one that is no longer wanted leaves.
"""

import httpx
import pytest

from ipnext.model.deployment.deployment import AssignedSnapshot
from ipnext.model.registry.adapter import ServedAdapter, engine_name
from tests.genai.support.regions import LONG, region
from tests.waiting import until

pytestmark = pytest.mark.usefixtures("subprocesses")

FIRST, SECOND = 11, 12
"""Adapters of generations 1 and 2, on snapshot 1."""


def held(shelf, number, *generations, **more):
    source = shelf.published[number]
    return AssignedSnapshot(
        snapshot=number, digest=source.manifest.digest, uri=source.uri, generations=generations, **more
    )


def test_an_adapter_that_fails_is_told_as_the_adapters_failure(shelf, tmp_path):
    with region(shelf, tmp_path) as bed:
        adapter = held(shelf, 13, 1, part="style", adapter=True)
        bed.deploy({1: 1}, holds=(held(shelf, 1, 1, adapters=1), adapter))
        replica = until(lambda: next((r for r in bed.agent.replicas(bed.key) if r.failures), None))
        (failure,) = replica.failures
        assert (failure.adapter, failure.snapshot, failure.code) == ("style", 13, "LoadFailed")
        assert replica.ready == ()


class Styled:
    """A region whose model has an adapter: generation 1 answers with the first, and the engine has both."""

    def __init__(self, bed):
        self.bed, self.shelf = bed, bed.shelf
        self.hold(1, 2)
        for generation in (1, 2):
            bed.agent.await_ready(bed.key, generation)
        self.route(1)
        (replica,) = bed.agent.replicas(bed.key)
        self.engine = replica.engines[1]

    def hold(self, *generations, **told):
        numbers = {1: FIRST, 2: SECOND}
        adapters = (held(self.shelf, numbers[g], g, part="style", adapter=True) for g in generations)
        self.bed.deploy(dict.fromkeys(generations, 1), replicas=1, holds=(self.base(*generations), *adapters), **told)

    def base(self, *generations):
        return held(self.shelf, 1, *generations, adapters=1)

    def route(self, generation, *, adapters=True):
        table = self.bed.model.table(generation, {generation: 1.0}, served=[generation])
        style = ServedAdapter(
            base="llm", name=engine_name("style", self.shelf.published[10 + generation].manifest.digest)
        )
        change = {"engines": {"llm": "vllm"}, "adapters": {"style": style} if adapters else {}}
        change["snapshots"] = {"llm": 1} | ({"style": 10 + generation} if adapters else {})
        served = tuple(one.model_copy(update=change) for one in table.served)
        self.bed.agent.infra.route(table.model_copy(update={"served": served}))

    @property
    def loaded(self):
        cards = httpx.get(f"{self.engine}/v1/models", timeout=60).json()["data"]
        return {card["id"] for card in cards if card.get("parent")}


@pytest.fixture
def styled(shelf, tmp_path):
    with region(shelf, tmp_path) as bed:
        yield Styled(bed)


def words(running):
    return {text.split()[0].rpartition("-")[0] for text, _ in running.pieces}


def test_an_adapter_that_is_replaced_is_unloaded_only_when_its_last_stream_has_ended(styled, shelf):
    running = styled.bed.begun(2 * LONG, model="chat:style")
    assert styled.loaded == {shelf.name(FIRST), shelf.name(SECOND)}
    styled.route(2)
    styled.hold(2)
    after = styled.bed.begun(5, model="chat:style")
    assert (after.ended(), words(after)) == (5, {shelf.name(SECOND)})
    there = []
    while not running.over:
        there.append(styled.loaded)
    assert (running.ended(), words(running)) == (2 * LONG, {shelf.name(FIRST)})
    assert len(there) > 20
    assert [names for names in there[:-5] if shelf.name(FIRST) not in names] == []
    until(lambda: styled.loaded == {shelf.name(SECOND)})


def test_a_stream_that_goes_on_beyond_the_drain_keeps_the_adapter_that_is_unloaded(styled, shelf):
    running = styled.bed.begun(2 * LONG, model="chat:style")
    styled.route(2)
    styled.hold(2, drain_seconds=0.5)
    until(lambda: styled.loaded == {shelf.name(SECOND)})
    assert not running.over
    assert (running.ended(), words(running)) == (2 * LONG, {shelf.name(FIRST)})


def test_an_adapter_part_that_is_taken_away_leaves_with_its_engine_once_its_streams_have_ended(styled, shelf):
    running = styled.bed.begun(4 * LONG, model="chat:style")
    (former,) = styled.bed.agent.replicas(styled.bed.key)
    plain = held(shelf, 2, 2)
    styled.bed.deploy(
        {1: 1, 2: 1}, holds=(styled.base(1), held(shelf, FIRST, 1, part="style", adapter=True), plain), own={1: 1, 2: 1}
    )
    styled.bed.agent.await_ready(styled.bed.key, 2)
    styled.route(2, adapters=False)
    styled.bed.deploy({2: 1}, holds=(plain,), own={2: 1})
    there = []
    while not running.over:
        there.append(styled.loaded)
    assert (running.ended(), words(running)) == (4 * LONG, {shelf.name(FIRST)})
    assert len(there) > 20
    assert [names for names in there if shelf.name(FIRST) not in names] == []
    until(lambda: former.pid not in [replica.pid for replica in styled.bed.agent.replicas(styled.bed.key)])
    after = styled.bed.begun(5)
    assert after.ended() == 5
