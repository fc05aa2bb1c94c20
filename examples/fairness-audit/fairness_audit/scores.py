"""Scores of a snapshot on its replay set, by group: a process of its own, since it runs the program of a stranger.

`score_groups` starts it from a worker; the function `main` is the process, which confines itself before it reads the
snapshot (`activities.runtime.tool_process`).
"""

import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from activities.runtime.tool_process import enter, read_bounded, run_tool
from ipnext.errors import EXIT_BAD_INPUT, EXIT_OK, IPnextError
from ipnext.model.registry.optimization import REPLAY_FILE
from ipnext.model.registry.registry import SNAPSHOT_FILE, SnapshotManifest, TensorSpec
from serving.confinement.landlock import Confinement

NAME = "the audit"


class Unfit(Exception):
    """The snapshot can't be audited: it has no replay set, or not the input or output."""


@dataclass(frozen=True)
class Group:
    """Rows with one value of the input that groups them."""

    rows: int
    mean: float


def score_groups(
    snapshot: Path, group_by: str, output: str, workspace: Path, beat: Callable[[float], None]
) -> dict[str, Group]:
    """Return the groups of a snapshot's replay set by value of the input `group_by`, with the mean of `output`.

    Raises Unfit, or ToolEnded if the process was killed.
    """
    workspace.mkdir()
    ran = run_tool(
        __name__,
        [str(snapshot), group_by, output],
        beat,
        readable=[snapshot],
        workspace=workspace,
        confinement=Confinement.AVAILABLE,
    )
    if ran.status == EXIT_BAD_INPUT:
        raise Unfit(ran.last_words)
    if ran.status != EXIT_OK:
        raise ran.ended(NAME)
    return {value: Group(**group) for value, group in json.loads(read_bounded(ran.answer)).items()}


def main(arguments: Sequence[str]) -> None:
    """Become the process: confine it, run the model, write the groups as JSON to standard output."""
    snapshot, group_by, output = enter(arguments)
    try:
        groups = _run(Path(snapshot), group_by, output)
    except (IPnextError, Unfit) as error:
        sys.stderr.write(f"error: {error}\n")
        sys.exit(EXIT_BAD_INPUT)
    sys.stdout.write(json.dumps(groups))


def _names(specs: Sequence[TensorSpec]) -> list[str]:
    return [spec.name for spec in specs]


def _run(snapshot: Path, group_by: str, output: str) -> dict[str, dict[str, float]]:
    import numpy as np  # noqa: PLC0415 - only after the process has confined itself

    from serving.engines.base import find_engine  # noqa: PLC0415
    from serving.optimizing.replay import read_replay  # noqa: PLC0415

    if not (snapshot / REPLAY_FILE).exists():
        msg = f"the snapshot has no {REPLAY_FILE}"
        raise Unfit(msg)
    manifest = SnapshotManifest.model_validate_json((snapshot / SNAPSHOT_FILE).read_bytes())
    inputs, outputs = _names(manifest.signature.inputs), _names(manifest.signature.outputs)
    if group_by not in inputs or output not in outputs:
        given = f"groupBy: {group_by!r}, output: {output!r}"
        msg = f"{given}; the snapshot has inputs {', '.join(inputs)} and outputs {', '.join(outputs)}"
        raise Unfit(msg)
    part = find_engine(manifest.engine).load(snapshot, manifest, {})
    scores, values = [], []
    for request in read_replay(snapshot / REPLAY_FILE, manifest.signature).requests:
        answer = part.infer({name: tensor.data for name, tensor in request.items()})
        rows = len(request[group_by].data)
        scores.append(np.asarray(answer[output], np.float64).reshape(rows, -1).mean(1))
        values.append(request[group_by].data.reshape(rows, -1)[:, 0])
    score, value = np.concatenate(scores), np.concatenate(values)
    return {
        str(each): {"rows": int((value == each).sum()), "mean": float(score[value == each].mean())}
        for each in np.unique(value).tolist()
    }


if __name__ == "__main__":
    main(sys.argv[1:])
