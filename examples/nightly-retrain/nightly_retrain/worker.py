"""The worker: `python -m nightly_retrain.worker [HOST:PORT]`. It needs Temporal, and the API by IPNEXT_API_URL."""

import asyncio
import sys
from concurrent.futures import ThreadPoolExecutor

from temporalio.client import Client as Temporal
from temporalio.worker import Worker

from ipnext.client import Client
from nightly_retrain.steps import Steps
from nightly_retrain.workflow import NightlyRetrain

QUEUE = "nightly-retrain"


def worker_of(temporal: Temporal, client: Client) -> Worker:
    """Return a worker of the workflow and its steps."""
    return Worker(
        temporal,
        task_queue=QUEUE,
        workflows=[NightlyRetrain],
        activities=Steps(client).all(),
        activity_executor=ThreadPoolExecutor(8),
    )


async def main(address: str) -> None:
    """Serve until the process is ended."""
    temporal = await Temporal.connect(address)
    with Client() as client:
        await worker_of(temporal, client).run()


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1] if len(sys.argv) > 1 else "127.0.0.1:7233"))
