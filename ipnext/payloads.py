"""Encoding of values in Temporal: JSON by pydantic, whose readers accept fields of newer builds.

Used by every client, worker and replayer of the platform (`ipnext.temporal.connect`).
"""

from typing import Any, Self

from temporalio.api.common.v1 import Payload
from temporalio.contrib.pydantic import PydanticJSONPlainPayloadConverter
from temporalio.converter import (
    CompositePayloadConverter,
    DataConverter,
    DefaultPayloadConverter,
    EncodingPayloadConverter,
    SerializationContext,
)

from ipnext.model.wire import decode


class TolerantJson(PydanticJSONPlainPayloadConverter):
    """Pydantic's JSON, whose readers ignore unknown fields at every depth."""

    def from_payload(self, payload: Payload, type_hint: type | None = None) -> Any:
        """See the base class."""
        return decode(Any if type_hint is None else type_hint, payload.data)


def _converters() -> tuple[EncodingPayloadConverter, ...]:
    json = TolerantJson()
    defaults = DefaultPayloadConverter.default_encoding_payload_converters
    return tuple(json if each.encoding == json.encoding else each for each in defaults)


_CONVERTERS = {each.encoding.encode(): each for each in _converters()}


class TolerantPayloads(CompositePayloadConverter):
    """The SDK's converters, with TolerantJson in place of plain JSON.

    The SDK creates two for each task of a workflow, so they share their parts, which have no state.
    """

    def __init__(self) -> None:
        self.converters = _CONVERTERS

    def with_context(self, context: SerializationContext) -> Self:  # noqa: ARG002 - the SDK's signature
        """Return itself: no part of it depends on the context."""
        return self


class PlatformDataConverter(DataConverter):
    """A converter for every context: the SDK requests one for the context six times for each payload."""

    def with_context(self, context: SerializationContext) -> Self:  # noqa: ARG002 - the SDK's signature
        """Return itself: no part of it depends on the context."""
        return self


DATA_CONVERTER = PlatformDataConverter(payload_converter_class=TolerantPayloads)
"""The data converter of the platform."""
