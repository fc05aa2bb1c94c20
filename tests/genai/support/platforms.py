"""The whole platform with hosts that run vLLM, or the mock in its place."""

from contextlib import contextmanager

from tests.e2e.conftest import Running
from tests.processes import gone
from tests.waiting import until


@contextmanager
def platform_with(state, **environment):
    """`ipnext dev` with variables of the hosts' environment; nothing of it is left afterwards."""
    running = Running(state, **environment).start()
    try:
        yield running
    finally:
        family = running.family()
        running.stop()
        until(lambda: gone(family))
