"""The whole platform with hosts that run vLLM, or the mock in its place."""

from contextlib import contextmanager

from tests.e2e.conftest import Running, eventually
from tests.processes import gone


@contextmanager
def platform_with(state, **environment):
    """`ipnext dev` with variables of the hosts' environment; nothing of it is left afterwards."""
    running = Running(state, **environment).start()
    try:
        yield running
    finally:
        family = running.family()
        running.stop()
        eventually(lambda: gone(family), 60)
