"""A publisher that never rests."""

import threading
import time
from pathlib import Path

from ipnext.client import Client
from ipnext.errors import IPnextError


def publish_for_ever(client: Client, model: str, sources: list[Path], stop: threading.Event, ids: list[str]) -> None:
    """One publish after the other, each when the one before has ended; an API that is busy is asked again."""
    while not stop.is_set():
        try:
            change = client.publish(model, {"dense": sources[len(ids) % len(sources)]})
            ids.append(change.id)
            client.wait_change(change.id, timeout_seconds=120)
        except IPnextError:
            time.sleep(0.2)
