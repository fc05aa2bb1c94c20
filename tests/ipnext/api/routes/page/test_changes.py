"""What the page shows of a change in its stages, of its shadow and of what a pipeline derived."""

import pytest

from ipnext.model.lifecycle.changes.change import ChangeState
from ipnext.model.lifecycle.changes.change_stages import begin_stages, end_stage
from ipnext.model.lifecycle.changes.stage_order import ComposedStage
from ipnext.model.registry.optimization import AccuracyReport, Measured, ReplayReport
from tests.ipnext.stages.test_shadow_shown import SEEN, kept

pytestmark = pytest.mark.browser

MARKUP = "<img src=x onerror=\"document.body.dataset.run='yes'\"><b>bold</b>"


def test_stages_and_derivatives_of_a_model_are_shown_as_text(page, seeded):
    rooms = seeded.rooms
    rooms.publish_directly("ranker", "d")
    rooms.derive(4, "dense")
    order = [ComposedStage(name=name) for name in ("metadata", "audit", "transition")]
    with rooms.store.begin("ranker") as unit:
        unit.update_change("ranker-d", state=ChangeState.RUNNING)
        unit.begin_stages("ranker", "ranker-d", begin_stages(order, unit.now()))
        unit.note_stages("ranker", "ranker-d", lambda stages, at: end_stage(stages, "metadata", at))
        unit.note_stages("ranker", "ranker-d", lambda stages, at: end_stage(stages, "audit", at, message=MARKUP))
    model = page.locator("[data-model=ranker]")
    model.locator("[data-stage=transition]").wait_for(timeout=15000)
    states = [step.get_attribute("data-state") for step in model.locator("[data-stage]").all()]
    assert states == ["passed", "passed", "running"]
    assert model.locator("[aria-current=step]").get_attribute("data-stage") == "transition"
    assert MARKUP in model.inner_text()
    row = model.locator("[data-derivative]").inner_text()
    for text in ("quantize", "derived", "largest error: 0.1", "1 rows drawn"):
        assert text in row
    assert page.locator("[data-change='ranker-d'] [data-stage]").count() == 3


def test_the_shadow_of_a_change_is_shown_with_what_it_has_compared(page, seeded):
    rooms = seeded.rooms
    rooms.publish_directly("ranker", "d")
    evidence = {**SEEN.evidence, "largest_difference": 0.00042}
    seen = SEEN.model_copy(update={"message": MARKUP, "evidence": evidence})
    with rooms.store.begin("ranker") as unit:
        unit.update_change("ranker-d", state=ChangeState.RUNNING)
        unit.put_shadow(kept("ranker-d"), seen)
    shadow = page.locator("[data-model=ranker] [data-shadow]")
    shadow.wait_for(timeout=15000)
    told = shadow.inner_text()
    assert seen.state in told.lower()
    for text in (MARKUP, "0.00042", f"{kept('ranker-d').settings.share:.0%}", *kept("ranker-d").regions):
        assert text in told


def test_a_refused_derivative_is_shown_with_the_limit_that_it_breaks(page, seeded):
    rooms = seeded.rooms
    rooms.publish_directly("ranker", "d")
    reason = f"maxAucDrop: AUC falls by 0.02; allowed: 0.001 {MARKUP}"
    report = AccuracyReport(
        kind="quantize",
        settings={"embeddings": "int4", "maxAucDrop": 0.001},
        parent="0" * 64,
        tools={"torch": "2.13"},
        weights_bytes=Measured(before=8, after=1),
        replaced_bytes=Measured(before=8, after=1),
        replay=ReplayReport(rows=500, source="replay", labels="replay"),
        max_error=3e-8,
        max_relative_error=0.5,
        auc=Measured(before=0.71, after=0.69),
        broken=(reason,),
    )
    with rooms.store.begin("ranker") as unit:
        source = unit.snapshot("ranker", "dense", 1)
        unit.add_derivation(source, "1" * 64, report.model_copy(update={"parent": source.digest}), None)
    row = page.locator("[data-model=ranker] [data-derivative=refused]")
    row.wait_for(timeout=15000)
    told = row.inner_text()
    for text in (
        "quantize",
        "none",
        "refused",
        reason,
        "AUC: 0.71 \u2192 0.69 (maxAucDrop 0.001)",
        "largest error: <0.000001",
        "500 rows of the replay set",
    ):
        assert text in told
    assert "AUC" in row.locator(".badge.bad").all_inner_texts()[-1]
    assert page.evaluate("document.body.dataset.run") is None
