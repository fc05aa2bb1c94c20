"""The Temporal namespace: whether it exists, its retention of runs, and its search attributes."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta

from google.protobuf.duration_pb2 import Duration
from temporalio.api.enums.v1 import IndexedValueType
from temporalio.api.operatorservice.v1 import AddSearchAttributesRequest, ListSearchAttributesRequest
from temporalio.api.workflowservice.v1 import DescribeNamespaceRequest, RegisterNamespaceRequest
from temporalio.service import RPCError, RPCStatusCode

from ipnext import names
from ipnext.temporal import Connection, reaching

DEFAULT_RETENTION = timedelta(days=7)
"""Retention of ended runs in a new namespace. The store keeps changes and events permanently in any case."""


@dataclass(frozen=True)
class Attributes:
    """The platform's search attributes in a namespace."""

    missing: Mapping[str, str]
    """Name -> the type to register."""
    wrong: Mapping[str, str]
    """Name -> the wrong type that is registered."""


async def attributes_of(client: Connection) -> Attributes:
    """Compare the namespace's search attributes with the platform's. Raises Unavailable, EngineRefused."""
    async with reaching(f"the search attributes of {client.namespace}"):
        asked = ListSearchAttributesRequest(namespace=client.namespace)
        found = (await client.operator_service.list_search_attributes(asked)).custom_attributes
    known = {name: _type_name(value) for name, value in found.items()}
    return Attributes(
        missing={name: kind for name, kind in names.SEARCH_ATTRIBUTES.items() if name not in known},
        wrong={n: known[n] for n, kind in names.SEARCH_ATTRIBUTES.items() if known.get(n, kind) != kind},
    )


async def register_attributes(client: Connection, attributes: Mapping[str, str]) -> None:
    """Register search attributes; an existing one is no error. Raises Unavailable, EngineRefused."""
    asked = AddSearchAttributesRequest(
        namespace=client.namespace,
        search_attributes={name: _type_value(kind) for name, kind in attributes.items()},
    )
    async with reaching(f"the search attributes of {client.namespace}"):
        try:
            await client.operator_service.add_search_attributes(asked)
        except RPCError as error:
            if error.status is not RPCStatusCode.ALREADY_EXISTS:
                raise


async def retention_of(client: Connection) -> timedelta | None:
    """Return the namespace's retention of ended runs; None if it does not exist. Raises Unavailable, EngineRefused."""
    async with reaching(f"the namespace {client.namespace}"):
        try:
            found = await client.workflow_service.describe_namespace(
                DescribeNamespaceRequest(namespace=client.namespace)
            )
        except RPCError as error:
            if error.status is RPCStatusCode.NOT_FOUND:
                return None
            raise
    return found.config.workflow_execution_retention_ttl.ToTimedelta()


async def create_namespace(client: Connection, *, retention: timedelta = DEFAULT_RETENTION) -> None:
    """Create the client's namespace; an existing one is no error. Raises Unavailable, EngineRefused."""
    asked = RegisterNamespaceRequest(
        namespace=client.namespace,
        description="IPnext",
        workflow_execution_retention_period=Duration(seconds=int(retention.total_seconds())),
    )
    async with reaching(f"the namespace {client.namespace}"):
        try:
            await client.workflow_service.register_namespace(asked)
        except RPCError as error:
            if error.status is not RPCStatusCode.ALREADY_EXISTS:
                raise


def _type_value(kind: str) -> IndexedValueType.ValueType:
    return IndexedValueType.Value(
        "INDEXED_VALUE_TYPE_" + "".join(f"_{c}" if c.isupper() else c.upper() for c in kind)[1:]
    )


def _type_name(value: IndexedValueType.ValueType) -> str:
    words = IndexedValueType.Name(value).removeprefix("INDEXED_VALUE_TYPE_").split("_")
    return "".join(word.capitalize() for word in words)
