"""Results of checks, kept by their inputs, and overrides of refusals."""

import pytest

from ipnext.errors import NotFound
from ipnext.model.lifecycle.changes.change import ChangeKind
from ipnext.model.lifecycle.checks import CheckOutcome, CheckResult
from ipnext.store.changes import checks

RESULT = CheckResult(check="mine", subject="dense", outcome=CheckOutcome.PASSED, evidence={"rows": 3})


def test_results_are_found_by_their_key_and_replaced(applied):
    with applied.begin("ctr") as unit:
        unit.add_check_results("ctr", "mine", "1" * 64, [RESULT])
    with applied.begin("ctr") as unit:
        unit.add_check_results("ctr", "mine", "1" * 64, [RESULT, RESULT])
    with applied.read() as unit:
        assert unit.check_results("ctr", "1" * 64) == (RESULT, RESULT)
        assert unit.check_results("ctr", "2" * 64) is None


def test_the_newest_results_of_a_model_are_kept_and_no_large_ones(applied, monkeypatch):
    monkeypatch.setattr(checks, "MOST_KEPT", 2)
    for key in "abc":
        with applied.begin("ctr") as unit:
            unit.add_check_results("ctr", "mine", key, [RESULT])
    with applied.begin("ctr") as unit:
        large = RESULT.model_copy(update={"message": "x" * checks.LARGEST_KEPT_BYTES})
        unit.add_check_results("ctr", "mine", "d", [large])
    with applied.read() as unit:
        assert [unit.check_results("ctr", key) is not None for key in "abcd"] == [False, True, True, False]


def test_the_first_override_of_a_check_stays_and_holds_for_its_change_only(applied):
    with applied.begin("ctr") as unit:
        first = unit.add_change("ctr", ChangeKind.APPLY, change_id="c1")
        unit.add_change("ctr", ChangeKind.APPLY, change_id="c2")
        given = unit.override_check(first.id, "mine", who="ann", reason="a fix")
        assert unit.override_check(first.id, "mine", who="bob", reason="other") == given
        with pytest.raises(NotFound):
            unit.override_check("none", "mine", who="ann", reason="a fix")
    with applied.read() as unit:
        assert unit.check_overrides("c1") == {"mine": given}
        assert unit.check_overrides("c2") == {}
