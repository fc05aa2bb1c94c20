"""What a demo run found, as a file for scripts."""

from collections.abc import Mapping
from pathlib import Path

from ipnext.model.value import Value


class Report(Value):
    """Figures of one run of the demo. AUCs are those of generation 1 on the test split; seconds are wall time."""

    generations: int
    requests: int
    failed: int
    mixed: int
    auc_offline: float
    auc_served: float
    auc_served_by_region: Mapping[str, float]
    auc_offline_generation_2: float
    auc_served_generation_2: float
    refused_reason: str
    refused_message: str
    rollback_seconds: float
    replan_moves: int
    replan_cost_per_hour: tuple[float, float]
    """Before and after."""
    publish_to_serving_seconds: float
    first_publish_to_serving_seconds: float
    latency_p50_seconds: float
    latency_p99_seconds: float
    answers_by_generation: Mapping[str, int]
    failures: tuple[str, ...] = ()
    total_seconds: float

    @property
    def sound(self) -> bool:
        """True if the run kept every promise of the demo."""
        same = abs(self.auc_offline - self.auc_served) <= 1e-6
        return same and self.failed == 0 and self.mixed == 0 and self.requests > 0 and bool(self.refused_reason)

    def write(self, path: Path) -> None:
        """Write JSON, whole or not at all."""
        half = path.with_name(path.name + ".part")
        half.write_text(self.model_dump_json(indent=2) + "\n")
        half.replace(path)
