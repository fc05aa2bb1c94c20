"""The place of the workflow engine that runs a platform's changes."""

from ipnext.model.value import Value


class WorkflowNamespace(Value):
    """A Temporal namespace. `id` is Temporal's own and stays, whatever the namespace and its servers are called."""

    id: str
    name: str
    address: str
    """Where it was reached; for a reader."""
