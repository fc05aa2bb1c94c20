"""A worker process for tests: real store and artifacts, the test's infrastructure behind a unix socket.

With a build id it writes `ready ID`.

    python killable_worker.py ROOT SOCKET TEMPORAL_ADDRESS [FAULT FILE]

It kills itself once at FAULT, which FILE notes down: see `workflows.runtime.fault_injection`.
"""

import asyncio
import sys
from collections.abc import Sequence
from contextlib import AsyncExitStack
from multiprocessing.managers import BaseManager
from pathlib import Path

from activities.planning.solver import ThreadSolver
from ipnext import names
from ipnext.artifacts.stores.file_store import FileArtifactStore
from ipnext.devfile import read_devfile
from ipnext.errors import IPnextError, Unavailable
from ipnext.platform.builds import make_first_current
from ipnext.store.store import Store
from ipnext.temporal import connect
from workflows.policies import BUILD_ID
from workflows.runtime.fault_injection import ONCE_VARIABLE, VARIABLE, FaultInjector, fault_of
from workflows.worker import engine_of, lifecycle_activities, planner_activities, worker_of


class Remote(BaseManager):
    """The other end of the test's socket."""


async def serve(root: Path, socket: str, address: str, *faults: str) -> None:
    Remote.register("infrastructure")
    remote = Remote(address=socket, authkey=b"test")
    remote.connect()
    store = Store.open(f"sqlite:///{root}/ipnext.db")
    store.migrate()
    client = await connect(address=address, timing=read_devfile().timing)
    fault = fault_of(dict(zip((VARIABLE, ONCE_VARIABLE), faults, strict=False)))
    interceptors = [FaultInjector(fault)] if fault else []
    engine = engine_of(lambda: client, asyncio.get_running_loop())
    ours = lifecycle_activities(store, FileArtifactStore(root / "artifacts"), remote.infrastructure(), engine)
    devfile = read_devfile()
    async with AsyncExitStack() as workers:
        for queue, activities in (
            (names.LIFECYCLE_QUEUE, ours),
            (names.URGENT_QUEUE, ours),
            (names.PLANNER_QUEUE, planner_activities(store, ThreadSolver())),
        ):
            worker = worker_of(client, devfile.group(queue), activities, devfile.timing, interceptors=interceptors)
            await workers.enter_async_context(worker)
        while BUILD_ID:
            try:
                await make_first_current(client, BUILD_ID)
            except Unavailable:
                await asyncio.sleep(0.1)
            else:
                print(f"ready {BUILD_ID}", flush=True)  # noqa: T201 - the test reads it
                break
        await asyncio.Event().wait()


def main(arguments: Sequence[str]) -> None:
    """Run a worker until it is killed."""
    root, *others = arguments
    try:
        asyncio.run(serve(Path(root), *others))
    except IPnextError as error:
        print(error.message, flush=True)  # noqa: T201 - the test reads it
        sys.exit(error.exit_status)


if __name__ == "__main__":
    main(sys.argv[1:])
