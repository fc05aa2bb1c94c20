"""Encrypts the reasons of cancellations, which Temporal stores as text beside the payloads."""

from typing import TYPE_CHECKING

from temporalio.bridge.proto.workflow_activation import WorkflowActivation
from temporalio.bridge.proto.workflow_completion import WorkflowActivationCompletion
from temporalio.converter import DataConverter, SerializationContext, StorageDriverStoreContext
from temporalio.worker import UnsandboxedWorkflowRunner, WorkflowInstance, WorkflowInstanceDetails, WorkflowRunner
from temporalio.workflow import Info

from ipnext.payloads import EncryptionCodec

if TYPE_CHECKING:
    from temporalio.worker._command_aware_visitor import CommandInfo

_CANCELLING = ("request_cancel_external_workflow_execution", "cancel_child_workflow_execution")
"""Commands that have a reason."""


def runner_of(converter: DataConverter) -> WorkflowRunner:
    """Return the runner of a client's workers: it encrypts reasons if the client encrypts payloads."""
    codec = converter.payload_codec
    return SealedReasons(codec) if isinstance(codec, EncryptionCodec) else UnsandboxedWorkflowRunner()


class SealedReasons(UnsandboxedWorkflowRunner):
    """Runs workflows that see and give reasons as they are, while the server has them encrypted."""

    def __init__(self, codec: EncryptionCodec) -> None:
        self._codec = codec

    def create_instance(self, det: WorkflowInstanceDetails) -> WorkflowInstance:
        """See the base class."""
        return _SealedInstance(super().create_instance(det), self._codec)


class _SealedInstance(WorkflowInstance):
    def __init__(self, inner: WorkflowInstance, codec: EncryptionCodec) -> None:
        self._inner = inner
        self._codec = codec

    def activate(self, act: WorkflowActivation) -> WorkflowActivationCompletion:
        for job in act.jobs:
            if job.HasField("cancel_workflow"):
                job.cancel_workflow.reason = self._codec.open_text(job.cancel_workflow.reason)
        completion = self._inner.activate(act)
        for command in completion.successful.commands:
            kind = command.WhichOneof("variant")
            if kind in _CANCELLING:
                cancelling = getattr(command, kind)
                cancelling.reason = self._codec.seal_text(cancelling.reason)
        return completion

    def get_serialization_context(self, command_info: "CommandInfo | None") -> SerializationContext | None:
        return self._inner.get_serialization_context(command_info)

    def get_external_store_context(self, command_info: "CommandInfo | None") -> StorageDriverStoreContext:
        return self._inner.get_external_store_context(command_info)

    def get_info(self) -> Info:
        return self._inner.get_info()

    def get_thread_id(self) -> int | None:
        return self._inner.get_thread_id()
