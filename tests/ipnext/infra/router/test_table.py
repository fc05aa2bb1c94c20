"""What a router is told of the requests of its models."""

from ipnext.infra.router.table import Terms, models_by_hardware, on_hardware, routed_models, terms_of
from ipnext.model.deployment.route_table import Shadow
from ipnext.model.deployment.router_table import PartEndpoint


def test_the_most_patient_part_of_a_model_counts(builder):
    model, other = builder("m", parts=("a", "b")), builder("n")
    parts = (
        model.deployment({1: (1,)}, part="a").model_copy(update={"drain_seconds": 300.0, "swap": True}),
        model.deployment({1: (1,)}, part="b").model_copy(update={"swap_wait_seconds": 20.0}),
        other.deployment({1: (1,)}),
    )
    assert terms_of(parts, drain_seconds=10.0) == {"m": Terms(300.0, 300.0, swap=True), "n": Terms(10.0, 10.0)}
    waits = parts[0].model_copy(update={"swap_wait_seconds": 0.0})
    assert terms_of([waits], drain_seconds=10.0) == {"m": Terms(300.0, 0.0, swap=True)}


def test_a_model_that_is_run_elsewhere_has_the_terms_of_none(builder):
    served = {name: (builder(name).served(1),) for name in ("m", "n")}
    m, n = routed_models(served, (), terms={"m": Terms(300.0, 20.0)})
    assert [(one.drain_seconds, one.swap_wait_seconds, one.swap) for one in (m, n)] == [
        (300.0, 20.0, False),
        (Terms().drain_seconds, Terms().swap_wait_seconds, False),
    ]


def test_a_model_that_has_not_changed_is_the_one_of_the_table_before(builder):
    served = {name: (builder(name).served(1),) for name in ("m", "n")}
    ready = [("m", PartEndpoint(part="dense", url="http://127.0.0.1:1", generations=(1,)))]
    former = routed_models(served, ())
    now = routed_models(served, ready, former=former)
    assert now == routed_models(served, ready)
    assert (now[0] is former[0], now[1] is former[1]) == (False, True)
    for changed in (
        routed_models(served, (), coming=[("n", 2)], former=former),
        routed_models(served, (), terms={"n": Terms(300.0)}, former=former),
        routed_models(served, (), access={"n": "authenticated"}, former=former),
        routed_models(served | {"n": (builder("n").served(2),)}, (), former=former),
    ):
        assert changed[0] is former[0]
        assert changed[1] != former[1]


def test_endpoints_have_their_hardware_if_a_generation_differs_by_it(builder):
    plain, differing = builder("m").served(1), builder("n").served(1)
    differing = differing.model_copy(update={"by_hardware": {"small": {"dense": 2}}})
    assert models_by_hardware({"m": (plain,), "n": (plain, differing)}, {}) == {"n"}
    assert models_by_hardware({"m": (plain,)}, {"m": Shadow(served=differing, share=0.1)}) == {"m"}
    endpoint = PartEndpoint(part="dense", url="http://127.0.0.1:1", generations=(1,))
    assert on_hardware(endpoint, "small").hardware == "small"
    assert "hardware" not in endpoint.model_dump()
    assert "by_hardware" not in plain.model_dump()


def test_a_shadow_is_left_out_while_its_generation_is_served(builder):
    model = builder("m")
    shadow = Shadow(served=model.served(2), share=0.5)
    for generations, expected in (((1,), shadow), ((1, 2), None), ((3,), shadow)):
        served = {"m": tuple(model.served(number) for number in generations)}
        [found] = routed_models(served, (), shadows={"m": shadow, "absent": shadow})
        assert found.shadow == expected
        assert [one.generation for one in found.served] == list(generations)
