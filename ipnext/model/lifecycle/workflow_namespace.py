"""The location of the workflow engine that runs a platform's changes."""

from ipnext.model.value import Value


class WorkflowNamespace(Value):
    """A Temporal namespace.

    `id` is Temporal's and stays the same under other names of the namespace and its servers.
    """

    id: str
    name: str
    address: str
    """The address of the last contact; for readers."""
