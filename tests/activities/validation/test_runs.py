"""How validators run: in order or side by side, in one form of result, from the cache, and past an override."""

import threading
from dataclasses import replace
from datetime import UTC, datetime

import pytest

from activities.validation.activities import BUILT_IN
from activities.validation.runs import LARGEST_EVIDENCE_BYTES, ValidatorError, collect_results, run_validators
from activities.validation.validator import FunctionValidator, PluginValidator, fail_check, pass_check
from ipnext.errors import Unavailable
from ipnext.model.lifecycle.checks import BUILT_IN as OURS
from ipnext.model.lifecycle.checks import SAFETY_CRITICAL, CheckOutcome, CheckOverride
from ipnext.model.lifecycle.status import Reason

LONGEST_WAIT = 60.0
"""Seconds; only a fault lasts so long."""


class Cache:
    def __init__(self):
        self.kept = {}

    def find(self, key):
        return self.kept.get(key)

    def keep(self, check, key, results):
        self.kept[key] = [each.model_copy() for each in results]
        self.last = check


def refusing(name, **more):
    return FunctionValidator(name, lambda _: [fail_check(name, "dense", Reason.SCHEMA_MISMATCH, "no")], **more)


def passing(name, **more):
    return FunctionValidator(name, lambda _: [pass_check(name, "dense", evidence={"rows": 3})], **more)


def override(check):
    return CheckOverride(change_id="c", check=check, model="m", at=datetime.now(UTC), who="ann", reason="a fix")


def outcomes(results):
    return [(each.check, str(each.outcome)) for each in results]


def test_every_result_has_the_same_form(candidate):
    class Size:
        name, required = "size", False

        def check(self, _):
            yield fail_check("other", "dense", Reason.SCHEMA_MISMATCH, "no", evidence={"bytes": 7})

    skipping = candidate(spec={"validation": {"skip": {"interface": "a new one"}}})
    validators = [passing("edges"), FunctionValidator("interface", lambda _: []), PluginValidator(Size(), "acme 1.0")]
    first, skipped, plugin = run_validators(skipping, validators)
    assert (first.outcome, first.evidence, first.source, first.cached) == (
        CheckOutcome.PASSED,
        {"rows": 3},
        OURS,
        False,
    )
    assert (first.duration_seconds >= 0, first.cached) == (True, False)
    assert (skipped.outcome, skipped.message) == (CheckOutcome.SKIPPED, "skipped: a new one")
    assert (plugin.check, plugin.outcome, plugin.source) == ("size", CheckOutcome.REFUSED, "acme 1.0")


def test_independent_checks_run_at_the_same_time_and_all_refusals_are_reported(candidate):
    together = threading.Barrier(3)

    def meeting(name):
        def check(_):
            together.wait(LONGEST_WAIT)  # broken, and so a fault, unless all three are here
            yield fail_check(name, "dense", Reason.SCHEMA_MISMATCH, "no")

        return FunctionValidator(name, check)

    found = run_validators(candidate(), [meeting(name) for name in "abc"])
    assert outcomes(found) == [(name, "refused") for name in "abc"]


def test_safety_critical_checks_run_first_and_the_first_refusal_ends_all(candidate):
    begun = []

    def noted(name):
        return FunctionValidator(name, lambda _: begun.append(name) or [pass_check(name, "dense")])

    found = run_validators(candidate(), [noted("late"), noted("safe-paths"), refusing("digests"), noted("program")])
    assert outcomes(found) == [("safe-paths", "passed"), ("digests", "refused")]
    assert begun == ["safe-paths"]


def test_an_error_of_the_platform_ends_the_other_checks(candidate):
    begun = threading.Event()

    def endless(_):
        begun.set()
        while True:
            yield pass_check("endless", "dense")

    def unavailable(_):
        begun.wait(LONGEST_WAIT)
        msg = "the artifact store does not answer"
        raise Unavailable(msg)

    validators = [FunctionValidator("endless", endless), FunctionValidator("reads", unavailable)]
    with pytest.raises(Unavailable):
        tuple(run_validators(candidate(), validators))


def test_a_fault_is_a_result_and_is_raised_unless_another_check_refuses(candidate):
    broken = FunctionValidator("broken", lambda _: 1 / 0)
    found, fault = collect_results(run_validators(candidate(), [passing("a"), broken]))
    assert outcomes(found) == [("a", "passed"), ("broken", "failed")]
    assert isinstance(fault, ValidatorError)
    found, fault = collect_results(run_validators(candidate(), [refusing("a"), broken]))
    assert (outcomes(found), fault) == ([("a", "refused"), ("broken", "failed")], None)


@pytest.mark.parametrize("evidence", [{"figure": float("nan")}, {"figure": object()}])
def test_evidence_that_is_no_json_is_a_fault_of_the_validator(candidate, evidence):
    check = FunctionValidator("mine", lambda _: [pass_check("mine", "dense", evidence=evidence)])
    with pytest.raises(ValidatorError, match="validator 'mine'"):
        tuple(run_validators(candidate(), [check]))


def test_evidence_is_bounded(candidate):
    large = {"text": "x" * LARGEST_EVIDENCE_BYTES}
    check = FunctionValidator("mine", lambda _: [pass_check("mine", "dense", evidence=large)])
    (found,) = run_validators(candidate(), [check])
    assert found.evidence == {"left_out": f"{LARGEST_EVIDENCE_BYTES + 12} bytes of evidence; kept: 16384"}


def test_the_same_inputs_are_not_checked_twice(candidate):
    runs, cache = [], Cache()

    def check(_):
        runs.append(1)
        yield pass_check("mine", "dense", evidence={"n": len(runs)})

    def run(inputs, version=1):
        mine = FunctionValidator("mine", check, inputs=lambda _: inputs, version=version)
        return tuple(run_validators(candidate(), [mine], cache))

    first, again = run({"limit": 1}), run({"limit": 1})
    assert ([each.cached for each in first], [each.cached for each in again]) == ([False], [True])
    assert again[0].evidence == {"n": 1}
    assert [each.cached for each in run({"limit": 2}) + run({"limit": 1}, version=2)] == [False, False]
    assert len(runs) == 3


@pytest.mark.parametrize(
    "checked",
    [
        passing("mine"),
        passing("mine", inputs=lambda _: None),
        passing("digests", inputs=lambda _: {}),
        FunctionValidator(
            "mine",
            lambda _: [fail_check("mine", "dense", Reason.DEADLINE_EXCEEDED, "it took too long")],
            inputs=lambda _: {},
        ),
    ],
)
def test_what_has_no_inputs_or_is_safety_critical_or_took_too_long_is_not_cached(candidate, checked):
    cache = Cache()
    tuple(run_validators(candidate(), [checked], cache))
    assert not cache.kept


def test_weights_are_cached_by_the_digests_of_all_snapshots(candidate, house, kit):
    cache = Cache()
    weights = [each for each in BUILT_IN if each.name == "finite-weights"]
    tuple(run_validators(candidate(), weights, cache))
    assert all(each.cached for each in run_validators(candidate(), weights, cache))
    other = candidate(dense=house.source(kit.DENSE, kit.weights(3)))
    assert not any(each.cached for each in run_validators(other, weights, cache))


def test_an_override_lets_a_refusal_and_a_fault_pass_and_the_report_tells_it(candidate):
    given = replace(candidate(), overrides={name: override(name) for name in ("a", "broken")})
    validators = [refusing("a"), FunctionValidator("broken", lambda _: 1 / 0), passing("b")]
    found, fault = collect_results(run_validators(given, validators))
    assert fault is None
    assert outcomes(found) == [("a", "overridden"), ("broken", "overridden"), ("b", "passed")]
    assert found[0].message == "overridden by ann: a fix; no"


def test_a_cached_refusal_is_overridden_and_refuses_again_without_the_override(candidate):
    cache, mine = Cache(), [refusing("mine", inputs=lambda _: {})]
    given = replace(candidate(), overrides={"mine": override("mine")})
    assert outcomes(run_validators(given, mine, cache)) == [("mine", "overridden")]
    (again,) = run_validators(candidate(), mine, cache)
    assert (again.outcome, again.cached) == (CheckOutcome.REFUSED, True)


@pytest.mark.parametrize("name", sorted(SAFETY_CRITICAL))
def test_safety_critical_checks_are_never_overridden(candidate, name):
    given = replace(candidate(), overrides={name: override(name)})
    assert outcomes(run_validators(given, [refusing(name, required=True)])) == [(name, "refused")]
