"""The whole platform with hosts that run vLLM, or the mock in its place: of one region."""

from contextlib import contextmanager

from tests.e2e.conftest import NO_HOSTS, Running, small_options
from tests.processes import gone
from tests.waiting import until


@contextmanager
def platform_with(state, **environment):
    """`ipnext dev` with variables of the hosts' environment; nothing of it is left afterwards.

    Hosts are fresh processes: those of engines are no forks anywhere.
    """
    running = Running(state, *small_options(state), **NO_HOSTS, **environment).start()
    try:
        yield running
    finally:
        family = running.family()
        running.stop()
        until(lambda: gone(family))
