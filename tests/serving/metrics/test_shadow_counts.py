"""Counts of a shadow: their report, and their metrics."""

import math

from prometheus_client import generate_latest
from prometheus_client.core import Metric
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.registry import Collector, CollectorRegistry

from ipnext.model.gate.distributions import quantile
from ipnext.model.gate.shadow import DIFFERENCE_BOUNDS, MOST_OUTPUTS, OTHER_OUTPUTS
from serving.metrics.answer_differences import AnswerDifference, TensorDifference
from serving.metrics.shadow_counts import ShadowCounts, ShadowFamilies


def counts(*differences, mismatches=frozenset(), seed=7):
    found = ShadowCounts("m", 2, seed)
    for difference in differences:
        answer = AnswerDifference({"score": difference}, frozenset(mismatches))
        found.note_compared(answer, seconds=0.01, shadow_seconds=0.02)
    return found


def test_the_report_has_what_was_compared():
    found = counts(TensorDifference(0.0, 0.0, 0.7), TensorDifference(0.5, math.inf, 1.0), mismatches={"shape"})
    found.chosen, found.under_way = 5, 1
    found.failures["HostLost"] += 1
    found.dropped["queue"] += 1
    report = found.comparison
    assert (report.key, report.chosen, report.compared, report.under_way) == (("m", 2, 7), 5, 2, 1)
    assert (report.mismatched, report.mismatches) == (2, {"shape": 2})
    assert (report.failures, report.dropped) == ({"HostLost": 1}, {"queue": 1})
    score = report.outputs["score"]
    assert score.overlap == {7: 1, 10: 1}
    assert score.relative == {0: 1, len(DIFFERENCE_BOUNDS): 1}
    assert 0.4 < quantile(score.absolute, DIFFERENCE_BOUNDS, 1.0) < 0.64
    assert sum(report.latency.values()) == sum(report.shadow_latency.values()) == 2


def test_outputs_beyond_the_sixteenth_share_one_entry():
    found = ShadowCounts("m", 2, 0)
    outputs = {f"o{number}": TensorDifference(float(number), 0.0) for number in range(MOST_OUTPUTS + 3)}
    for _ in range(2):
        found.note_compared(AnswerDifference(outputs), seconds=0.01, shadow_seconds=0.01)
    report = found.comparison.outputs
    assert len(report) == MOST_OUTPUTS + 1
    assert sum(report[OTHER_OUTPUTS].absolute.values()) == 2 * 3


class Scrape(Collector):
    def __init__(self, shadow):
        self.shadow = shadow

    def collect(self) -> list[Metric]:
        families = ShadowFamilies()
        self.shadow.add_to(families, "eu")
        return list(families)


def test_prometheus_sees_outcomes_times_and_differences_by_decade():
    found = counts(TensorDifference(0.0, 0.0, 0.7), TensorDifference(0.05, math.inf, 1.0))
    found.dropped["size"] += 3
    registry = CollectorRegistry()
    registry.register(Scrape(found))
    samples = {
        (sample.name, *(sample.labels.get(name) for name in ("outcome", "kind", "answer", "le"))): sample.value
        for family in text_string_to_metric_families(generate_latest(registry).decode())
        for sample in family.samples
    }
    assert samples["ipnext_shadow_requests_total", "compared", None, None, None] == 2
    assert samples["ipnext_shadow_requests_total", "dropped_size", None, None, None] == 3
    difference = "ipnext_shadow_difference_bucket"
    assert [samples[difference, None, "absolute", None, le] for le in ("1e-09", "0.01", "0.1", "+Inf")] == [1, 1, 2, 2]
    assert [samples[difference, None, "relative", None, le] for le in ("1000000.0", "+Inf")] == [1, 2]
    assert samples["ipnext_shadow_duration_seconds_count", None, None, "shadow", None] == 2
    assert [samples["ipnext_shadow_overlap_bucket", None, None, None, le] for le in ("0.6", "0.7", "1.0")] == [0, 1, 2]
