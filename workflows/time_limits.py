"""Passes a worker's time limits to the workflows that it runs.

They affect only new commands: on replay the history has those of the first run, and the SDK compares no time-outs.
"""

from temporalio.worker import Interceptor, WorkflowInboundInterceptor, WorkflowInterceptorClassInput

from ipnext.timing import Timing
from workflows.policies import TIMING


class TimeLimitInterceptor(Interceptor):
    """Interceptor for a worker, or a replayer."""

    def __init__(self, timing: Timing) -> None:
        self._timing = timing

    def workflow_interceptor_class(
        self,
        input: WorkflowInterceptorClassInput,  # noqa: A002 - the SDK's signature
    ) -> type[WorkflowInboundInterceptor] | None:
        """See Interceptor."""
        input.unsafe_extern_functions[TIMING] = lambda: self._timing
        return None
