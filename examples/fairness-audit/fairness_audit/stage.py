"""The stage: refuses a generation whose scores differ too much between groups of rows of its replay set."""

from collections.abc import Mapping
from datetime import timedelta
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from pydantic import BaseModel, ConfigDict, Field
from pydantic.alias_generators import to_camel
from temporalio import activity

from fairness_audit.scores import Group, Unfit, score_groups
from ipnext.stages.port import Stage, StageAnswer, StageRequest, open_artifacts


class Settings(BaseModel):
    """`settings` of the entry in `spec.lifecycle`."""

    model_config = ConfigDict(extra="forbid", alias_generator=to_camel)

    part: str
    """The part that is audited; its snapshots have a replay set."""
    group_by: str
    """The input whose value groups the rows of the replay set."""
    output: str = "score"
    max_gap: float = Field(gt=0)
    """Largest difference between the mean scores of two groups."""
    min_rows: int = Field(default=30, ge=1)
    """A smaller group is not compared."""


def check_settings(settings: Mapping[str, Any]) -> None:
    """Check the settings of a manifest. Raises ValueError."""
    Settings.model_validate(settings)


@activity.defn(name="stage.fairness-audit")
def audit(request: StageRequest) -> StageAnswer:
    """Compare the mean scores of the groups. The same generation gets the same answer each time."""
    settings = Settings.model_validate(request.settings)
    snapshot = request.snapshots.get(settings.part)
    if snapshot is None:
        known = ", ".join(sorted(request.snapshots))
        return StageAnswer(passed=False, message=f"part: {settings.part!r} is none of the generation; allowed: {known}")
    with TemporaryDirectory(prefix="fairness-audit-") as scratch:
        files = open_artifacts().fetch(snapshot.uri, Path(scratch) / "snapshot")
        try:
            groups = score_groups(files, settings.group_by, settings.output, Path(scratch) / "work", activity.heartbeat)
        except Unfit as error:
            return StageAnswer(passed=False, message=f"part {settings.part}: {error}")
    return judge(settings, groups)


def judge(settings: Settings, groups: Mapping[str, Group]) -> StageAnswer:
    """Return the answer of the stage for the scores of the groups."""
    means = {value: group.mean for value, group in groups.items() if group.rows >= settings.min_rows}
    evidence = {
        "part": settings.part,
        "groups": {value: {"rows": group.rows, "mean": round(group.mean, 6)} for value, group in groups.items()},
        "maxGap": settings.max_gap,
    }
    if len(means) < 2:
        message = f"{len(means)} groups by {settings.group_by} have {settings.min_rows} rows; needed: 2"
        return StageAnswer(passed=False, message=message, evidence=evidence)
    high, low = max(means, key=means.__getitem__), min(means, key=means.__getitem__)
    gap = means[high] - means[low]
    told = f"mean {settings.output} of {settings.group_by}={high} is {gap:.4f} above that of {settings.group_by}={low}"
    message = f"{told}; allowed: {settings.max_gap:g}"
    return StageAnswer(passed=gap <= settings.max_gap, message=message, evidence={**evidence, "gap": round(gap, 6)})


stage = Stage(
    name="fairness-audit", activity=audit, check=check_settings, start_to_close=timedelta(minutes=10), attempts=3
)
