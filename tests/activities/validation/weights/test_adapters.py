"""Validation of adapters, and what a generation with adapters makes the platform hold, route and refresh."""

from dataclasses import replace

import pytest

from activities.planning.problem import model_problem
from activities.state.desired import read_facts
from activities.state.replica_sets import wanted_deployments
from activities.state.routes.served_generations import served_generations
from activities.state.wave_state import ModelWaveState
from activities.transition.refresh_mode import refresh_of
from activities.validation.activities import BUILT_IN
from activities.validation.runs import run_validators
from activities.validation.weights.adapters import check_adapter_bases, check_adapters
from ipnext.errors import InvalidInput
from ipnext.model.lifecycle.status import Reason
from ipnext.model.manifest.parser import parse_manifest
from ipnext.model.planning.transition import FleetState, GenerationReplicas
from ipnext.model.registry.adapter import engine_name
from ipnext.model.registry.registry import GenerationState
from tests.genai.support.checkpoints import adapter_tensors, stored, write_adapter, write_llama

pytestmark = pytest.mark.trust

LLM = {"name": "llm", "engine": "vllm", "hardware": [{"kind": "cpu", "units": 1, "qps": 100}]}
STYLE = {"name": "style", "engine": "vllm", "adapterOf": "llm"}
SLOT = ("llm", "us-east", "cpu")


def spec(*parts, **more):
    return {"parts": [LLM, *parts], "graph": None, "task": "generation", **more}


@pytest.fixture
def shelf(house, tmp_path):
    """Put a base or an adapter into the artifact store; the same arguments give the same bytes."""
    made = iter(range(100))

    def put(kind, **given):
        directory = tmp_path / f"checkpoint-{next(made)}"
        write = write_adapter if kind == "adapter" else write_llama
        return stored(house.artifacts, write(directory, **given))

    return put


def adapter(value, **more):
    return {"tensors": adapter_tensors(value=value), **more}


def only(results):
    (result,) = results
    return result


def test_an_adapter_that_fits_its_base_passes_all_checks(candidate, shelf):
    found = candidate(spec=spec(STYLE), llm=shelf("model"), style=shelf("adapter"))
    kept = {part: found.snapshots[part] for part in ("llm", "style")}
    results = tuple(run_validators(replace(found, snapshots=kept), BUILT_IN))
    assert [result for result in results if not result.passed] == []
    assert only([result for result in results if result.check == "adapter"]).message == "rank 2, 32 parameters"


@pytest.mark.parametrize(
    ("kind", "given", "settings", "told"),
    [
        ("adapter", {}, {"maxLoraRank": 1}, "rank 2 is more than maxLoraRank of its base; allowed: up to 1"),
        ("adapter", {"tensors": adapter_tensors(inputs=9)}, {}, "q_proj of the base has 8 inputs"),
        ("model", {}, {}, "is a model (LlamaForCausalLM), not an adapter"),
    ],
)
def test_an_adapter_that_does_not_fit_is_refused_by_part_and_reason(candidate, shelf, kind, given, settings, told):
    part = {"spec": {**spec(STYLE), "parts": [{**LLM, "settings": settings}, STYLE]}}
    result = only(check_adapters(candidate(**part, llm=shelf("model"), style=shelf(kind, **given))))
    assert (result.passed, result.subject, result.reason) == (False, "style", Reason.SCHEMA_MISMATCH)
    assert "part 'style' on 'llm' (snapshots 1 and 1)" in result.message
    assert told in result.message


def test_an_adapter_in_the_place_of_a_model_is_refused(candidate, shelf):
    found = candidate(spec=spec(), llm=shelf("adapter"))
    result = next(
        r for r in run_validators(replace(found, snapshots={"llm": found.snapshots["llm"]}), BUILT_IN) if not r.passed
    )
    assert result.check == "checkpoint"
    assert "is an adapter on chat, not a model" in result.message


def test_a_base_that_no_longer_fits_the_adapter_that_serves_is_the_one_to_blame(candidate, shelf):
    style, former = shelf("adapter"), shelf("model")
    other = shelf("model", seed=5)
    serving = {"llm": former, "style": style}
    settings = {**LLM, "settings": {"maxLoraRank": 1}}
    given = {"spec": {**spec(STYLE), "parts": [settings, STYLE]}, "serving": serving}
    assert only(check_adapters(candidate(**given, llm=other, style=style))).subject == "llm"
    assert only(check_adapters(candidate(**given, llm=other, style=shelf("adapter", **adapter(2))))).subject == "style"
    assert only(check_adapters(candidate(**given, llm=former, style=style))).subject == "style"


def test_an_adapter_of_a_base_with_another_name_is_refused_unless_that_is_skipped(candidate, shelf):
    named = {
        "llm": shelf("model", _name_or_path="acme/small"),
        "style": shelf("adapter", base_model_name_or_path="acme/large"),
    }
    result = only(check_adapter_bases(candidate(spec=spec(STYLE), **named)))
    assert "base_model_name_or_path 'acme/large' is another model" in result.message
    skipping = candidate(
        spec=spec(STYLE, validation={"skip": {"adapter-base": "small was trained on from large"}}), **named
    )
    kept = {part: skipping.snapshots[part] for part in named}
    assert all(result.passed for result in run_validators(replace(skipping, snapshots=kept), BUILT_IN))


@pytest.fixture
def published(house, kit, shelf):
    """Model `chat` with generations of (base, adapter) as they are asked for; the repository's facts."""

    def publish(*sources, parts=(STYLE,), **more):
        house.apply("chat", **spec(*parts, **more))
        for number, given in enumerate(sources):
            with house.store.begin() as repository:
                repository.publish("chat", given, change_id=f"c{number}")
        return house

    return publish


def state(*generations, apart=False):
    return ModelWaveState({(SLOT, generation): 2 for generation in generations}, {}, apart)


def facts(house, target):
    with house.store.read() as repository:
        return read_facts(repository, "chat", target, named=range(1, 4))


def test_a_publish_of_an_adapter_keeps_its_base(published, shelf):
    house = published(
        {"llm": shelf("model"), "style": shelf("adapter", **adapter(1))}, {"style": shelf("adapter", **adapter(2))}
    )
    with house.store.read() as repository:
        generations = {g.number: g for g in repository.generations("chat")}
    assert generations[2].snapshots == {"llm": 1, "style": 2}
    assert generations[2].adapters == {"style": "llm"}


def test_a_publish_needs_the_adapter_once(published, shelf):
    with pytest.raises(InvalidInput, match="style of model 'chat' has no snapshot yet"):
        published({"llm": shelf("model")})


def test_the_planner_sees_parts_with_hardware_alone(kit):
    problem = model_problem(parse_manifest(kit.manifest("chat", **spec(STYLE))))
    assert [part.part for part in problem.parts] == ["llm"]


def test_one_engine_is_told_the_adapters_of_all_its_generations(published, shelf):
    house = published(
        {"llm": shelf("model"), "style": shelf("adapter", **adapter(1))}, {"style": shelf("adapter", **adapter(2))}
    )
    (deployment,) = wanted_deployments(facts(house, 2), state(1, 2))
    assert (deployment.key.part, deployment.replicas) == ("llm", 2)
    held = {(one.part, one.snapshot): one for one in deployment.holds}
    assert {key: one.generations for key, one in held.items()} == {
        (None, 1): (1, 2),
        ("style", 1): (1,),
        ("style", 2): (2,),
    }
    assert [(one.adapter, one.adapters) for one in held.values()] == [(False, 1), (True, 0), (True, 0)]


def test_a_router_is_told_how_engines_know_an_adapter(published, shelf):
    first, second = shelf("adapter", **adapter(1)), shelf("adapter", **adapter(2))
    house = published({"llm": shelf("model"), "style": first}, {"style": second})
    known = facts(house, 2)
    served = {
        one.generation: one for one in served_generations(known, "us-east", wanted_deployments(known, state(1, 2)))
    }
    names = {number: one.adapters["style"].name for number, one in served.items()}
    assert names == {1: engine_name("style", first.manifest.digest), 2: engine_name("style", second.manifest.digest)}
    assert served[2].adapters["style"].base == "llm"
    assert served[2].snapshots == {"llm": 1, "style": 2}
    assert served[2].engines == {"llm": "vllm"}


def test_a_base_from_before_its_first_adapter_needs_an_engine_of_its_own(house, published, shelf):
    base = shelf("model")
    published({"llm": base}, parts=())
    with house.store.begin() as repository:
        record = repository.model("chat")
        repository.put_model(with_part(record.manifest, STYLE), expected_version=None)
        repository.publish("chat", {"style": shelf("adapter")}, change_id="with")
    (deployment,) = wanted_deployments(facts(house, 2), state(1, 2))
    held = [(one.part, one.snapshot, one.adapters, one.generations) for one in deployment.holds]
    assert held == [(None, 1, 0, (1,)), (None, 1, 1, (2,)), ("style", 1, 0, (2,))]
    assert len({one.content for one in deployment.holds}) == 3
    assert refreshed(house, 1, 2) == "replace"


def with_part(manifest, part):
    document = manifest.model_dump(mode="json", by_alias=True)
    document["spec"]["parts"].append(part)
    return parse_manifest(document)


def refreshed(house, origin, to):
    with house.store.read() as repository:
        ends = tuple(
            FleetState(
                replicas=(GenerationReplicas.from_trusted("chat", "llm", number, "us-east", "cpu", 2),), traffic=()
            )
            for number in (origin, to)
        )
        return refresh_of(repository, repository.model("chat").manifest, ends)


def test_where_only_adapters_change_the_engines_stay_and_where_the_base_does_they_are_replaced(published, shelf):
    house = published(
        {"llm": shelf("model"), "style": shelf("adapter", **adapter(1))},
        {"style": shelf("adapter", **adapter(2))},
        {"llm": shelf("model", seed=3)},
    )
    assert refreshed(house, 1, 2) == "in_place"
    assert refreshed(house, 2, 1) == "in_place"
    assert refreshed(house, 2, 3) == "replace"
    assert refreshed(house, 3, 1) == "replace"


def test_another_number_of_adapters_needs_new_engines(house, published, shelf):
    published({"llm": shelf("model"), "style": shelf("adapter", **adapter(1))})
    with house.store.begin() as repository:
        record = repository.model("chat")
        repository.put_model(with_part(record.manifest, {**STYLE, "name": "tone"}), expected_version=None)
        repository.publish("chat", {"tone": shelf("adapter", **adapter(2))}, change_id="tone")
    assert refreshed(house, 1, 2) == "replace"


def test_a_former_generation_stays_warm_in_the_engine_that_serves(published, shelf):
    house = published(
        {"llm": shelf("model"), "style": shelf("adapter", **adapter(1))}, {"style": shelf("adapter", **adapter(2))}
    )
    with house.store.begin() as repository:
        repository.set_generation_state("chat", 1, GenerationState.SERVING)
        repository.set_generation_state("chat", 2, GenerationState.SERVING)
        for deployment in wanted_deployments(read_facts(repository, "chat", 2), state(1, 2)):
            repository.put_deployment(deployment)
    (deployment,) = wanted_deployments(facts(house, 2), state(2))
    assert deployment.generations == (1, 2)
    assert {held.snapshot for held in deployment.holds if held.adapter} == {1, 2}
