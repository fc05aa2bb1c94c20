"""What an applied manifest can't bring about by itself is said: it waits for a generation of its own."""

from datetime import UTC, datetime

from activities.metadata.activities import untaken
from ipnext.model.manifest.manifest import ModelSpec
from ipnext.model.registry.registry import Generation

LLM = {"name": "llm", "engine": "vllm", "hardware": [{"kind": "cpu", "units": 1, "qps": 1}]}
STYLE = {"name": "style", "engine": "vllm", "adapterOf": "llm"}


def spec(*parts):
    demand = [{"region": "eu", "qps": 1}]
    return ModelSpec.model_validate({"task": "generation", "parts": parts, "demand": demand})


def generation(**adapters):
    snapshots = {"llm": 1} | dict.fromkeys(adapters, 1)
    now = datetime(2026, 1, 1, tzinfo=UTC)
    return Generation(model="chat", number=4, snapshots=snapshots, adapters=adapters, created_at=now)


def test_an_adapter_that_the_manifest_no_longer_has_leaves_with_the_next_publish():
    told = untaken(generation(style="llm"), spec(LLM))
    assert told == "generation 4 keeps its adapter style: it leaves with the next publish"


def test_where_the_generation_has_what_the_manifest_asks_for_nothing_is_said():
    assert untaken(generation(style="llm"), spec(LLM, STYLE)) == ""
    assert untaken(generation(), spec(LLM)) == ""
