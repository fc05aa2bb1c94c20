"""Shares by which a router chooses the generation of OpenAI requests, from the region's route tables."""

import pytest

from ipnext.infra.generation_shares import OpenAIChoices, openai_choices


def generating(table):
    served = tuple(one.model_copy(update={"engines": {"dense": "vllm"}}) for one in table.served)
    return table.model_copy(update={"served": served})


def told(choices):
    return {one.model: {(share.to, share.generation): share.fraction for share in one.shares} for one in choices}


def test_models_with_an_engine_or_served_elsewhere_are_chosen_by_the_router(builder):
    tables = [
        generating(builder("llm").table(1, {1: 0.5, ("us", 2): 0.5})),
        builder("elsewhere").table(1, {("us", 1): 1.0}, served=[]),
        builder("ranker").table(1, {1: 1.0}),
    ]
    assert told(openai_choices("eu", {"us"}, tables)) == {
        "elsewhere": {("us", 1): 1.0},
        "llm": {("eu", 1): 0.5, ("us", 2): 0.5},
    }


def test_shares_without_traffic_or_of_regions_without_a_known_gateway_are_left_out(builder):
    tables = [generating(builder("llm").table(1, {1: 0.5, 2: 0.0, ("us", 3): 0.5}))]
    assert told(openai_choices("eu", (), tables)) == {"llm": {("eu", 1): 0.5}}


@pytest.mark.parametrize(
    ("unmet", "reason"),
    [
        ((), "no capacity in region eu at the moment"),
        (("supply eu/gpu",), "serves no users of region eu: supply eu/gpu"),
    ],
)
def test_a_model_without_shares_has_the_reason_of_its_refusal(builder, unmet, reason):
    table = builder("llm").table(1, {}, served=[]).model_copy(update={"unmet_rules": unmet, "access": "authenticated"})
    [choice] = openai_choices("eu", {"us"}, [table])
    assert (choice.shares, choice.access) == ((), "authenticated")
    assert reason in choice.refusal


def test_only_a_model_whose_table_changed_gets_new_shares(builder):
    a, b = (builder(name).table(1, {("us", 1): 1.0}, served=[]) for name in "ab")
    kept = OpenAIChoices("eu")
    first = kept.of({"us"}, {"a": a, "b": b})
    second = kept.of({"us"}, {"a": a, "b": builder("b").table(2, {("us", 2): 1.0}, served=[])})
    assert second[0] is first[0]
    assert told(second) == {"a": {("us", 1): 1.0}, "b": {("us", 2): 1.0}}
    assert told(kept.of((), {"a": a})) == {"a": {}}, "the gateway of the other region is not known any more"
