"""Optimizes generation 1 of a model in a house, and is killed before its second cut: `ROOT MODEL CHANGE`."""

import os
import signal
import sys
from pathlib import Path

from temporalio.testing import ActivityEnvironment

from activities.optimization.activities import OptimizationActivities
from ipnext.model.lifecycle.changes.change import ChangeKind
from ipnext.model.lifecycle.changes.lifecycle_run import StageInput
from tests.workflows.house import House


def main() -> None:
    house = House(Path(sys.argv[1]))
    cutter = house.cutter

    def cut(*given):
        if cutter.calls:
            os.kill(os.getpid(), signal.SIGKILL)
        return cutter(*given)

    activities = OptimizationActivities(house.store, house.artifacts, cutter=cut, deriver=house.deriver)
    stage = StageInput(model=sys.argv[2], change_id=sys.argv[3], kind=ChangeKind.PUBLISH, generation=1)
    ActivityEnvironment().run(activities.optimize_generation, stage)


if __name__ == "__main__":
    main()
