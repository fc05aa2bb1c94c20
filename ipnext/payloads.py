"""Encoding of values in Temporal: JSON by pydantic, whose readers accept fields of newer builds; encrypted by choice.

Used by every client, worker and replayer of the platform (`ipnext.temporal.connect`). The SDK's sandbox imports it with
workflows, and can't import cryptography twice: only what encrypts imports that.
"""

import os
import re
from base64 import b64decode, b64encode
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final, Self

from google.protobuf import json_format
from google.protobuf.message import DecodeError
from temporalio.api.common.v1 import Payload, Payloads
from temporalio.contrib.pydantic import PydanticJSONPlainPayloadConverter
from temporalio.converter import (
    CompositePayloadConverter,
    DataConverter,
    DefaultFailureConverter,
    DefaultFailureConverterWithEncodedAttributes,
    DefaultPayloadConverter,
    EncodingPayloadConverter,
    PayloadCodec,
    SerializationContext,
)

from ipnext.errors import InvalidInput
from ipnext.model.wire import decode
from ipnext.payload_keys import PayloadKeys

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.ciphers.aead import AESGCMSIV

ENCRYPTED: Final = b"binary/encrypted"
"""The encoding that an encrypted payload names, as Temporal's own samples do."""
KEY_NAME: Final = "encryption-key-id"
NONCE_BYTES: Final = 12
_SEALED_TEXT: Final = re.compile(
    r"(?P<passed_on>(?:Cancel requested by workflow with run id \S+ with reason: )?)"
    r"\[encrypted (?P<name>[A-Za-z0-9._-]+) (?P<data>(?:[A-Za-z0-9+/]{4})*(?:[A-Za-z0-9+/]{2}==|[A-Za-z0-9+/]{3}=)?)\]"
)
"""A whole text, so that no text of a user in it is taken for one."""


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


class EncryptionCodec(PayloadCodec):
    """Encrypts payloads by AES-256-GCM-SIV, each with its metadata. Payloads in clear text are decoded as they are."""

    def __init__(self, keys: Callable[[], PayloadKeys]) -> None:
        """`keys` returns those of this moment."""
        self._keys = keys
        self._known: tuple[PayloadKeys, Mapping[str, AESGCMSIV]] | None = None

    async def encode(self, payloads: Sequence[Payload]) -> list[Payload]:
        """Encrypt, or return the payloads as they are if no key encrypts."""
        keys, ciphers = self._current()
        name = keys.encrypt
        return list(payloads) if name is None else [_seal(name, ciphers[name], payload) for payload in payloads]

    async def decode(self, payloads: Sequence[Payload]) -> list[Payload]:
        """Decrypt. Raises InvalidInput if a payload has an unknown key, or was changed."""
        _, ciphers = self._current()
        return [_open(ciphers, payload) for payload in payloads]

    def seal_text(self, text: str) -> str:
        """Encrypt a text of which Temporal stores no payload; an empty one, and one without a key, stays as it is."""
        keys, ciphers = self._current()
        name = keys.encrypt
        if name is None or not text:
            return text
        sealed = _seal(name, ciphers[name], Payload(data=text.encode()))
        return f"[encrypted {name} {b64encode(sealed.data).decode()}]"

    def open_text(self, text: str) -> str:
        """Decrypt a text of `seal_text`, also one that the SDK passed on. Raises InvalidInput as `decode` does."""
        found = _SEALED_TEXT.fullmatch(text)
        if found is None:
            return text
        metadata = {"encoding": ENCRYPTED, KEY_NAME: found["name"].encode()}
        opened = _open(self._current()[1], Payload(metadata=metadata, data=b64decode(found["data"])))
        return found["passed_on"] + opened.data.decode()

    def _current(self) -> "tuple[PayloadKeys, Mapping[str, AESGCMSIV]]":
        """Return the keys with their ciphers, in one value: other threads may replace them meanwhile."""
        keys, known = self._keys(), self._known
        if known is None or known[0] is not keys:
            from cryptography.hazmat.primitives.ciphers.aead import AESGCMSIV  # noqa: PLC0415 - see the module

            known = self._known = keys, {name: AESGCMSIV(key) for name, key in keys.keys.items()}
        return known


def _seal(name: str, cipher: "AESGCMSIV", payload: Payload) -> Payload:
    nonce = os.urandom(NONCE_BYTES)
    data = nonce + cipher.encrypt(nonce, payload.SerializeToString(), name.encode())
    return Payload(metadata={"encoding": ENCRYPTED, KEY_NAME: name.encode()}, data=data)


def _open(ciphers: "Mapping[str, AESGCMSIV]", payload: Payload) -> Payload:
    if payload.metadata.get("encoding") != ENCRYPTED:
        return payload
    name = payload.metadata.get(KEY_NAME, b"").decode("ascii", "replace")
    cipher = ciphers.get(name)
    if cipher is None:
        msg = f"payload: it is encrypted by the key {name[:64]!r}, which is none of {', '.join(ciphers)}"
        raise InvalidInput(msg, field=KEY_NAME, value=name[:64], allowed=tuple(ciphers))
    from cryptography.exceptions import InvalidTag  # noqa: PLC0415 - see the module

    nonce, sealed = payload.data[:NONCE_BYTES], payload.data[NONCE_BYTES:]
    try:
        return Payload.FromString(cipher.decrypt(nonce, sealed, name.encode()))
    except (InvalidTag, ValueError, DecodeError) as error:
        msg = f"payload: it was not encrypted by this key {name!r}, or was changed since"
        raise InvalidInput(msg, field=KEY_NAME, value=name) from error


def data_converter(keys: Callable[[], PayloadKeys] | None = None) -> DataConverter:
    """Return the data converter of the platform; with keys, payloads and the texts of failures are encrypted."""
    failures = DefaultFailureConverter if keys is None else DefaultFailureConverterWithEncodedAttributes
    return PlatformDataConverter(
        payload_converter_class=TolerantPayloads,
        payload_codec=None if keys is None else EncryptionCodec(keys),
        failure_converter_class=failures,
    )


DATA_CONVERTER = data_converter()
"""The data converter without encryption."""


async def encode_json(codec: PayloadCodec, content: bytes) -> bytes:
    """Encode payloads in the JSON of Temporal's remote codecs. Raises InvalidInput."""
    return _as_json(await codec.encode(_from_json(content)))


async def decode_json(codec: PayloadCodec, content: bytes) -> bytes:
    """Decode payloads in the JSON of Temporal's remote codecs. Raises InvalidInput."""
    return _as_json(await codec.decode(_from_json(content)))


def _from_json(content: bytes) -> Sequence[Payload]:
    try:
        return json_format.Parse(content, Payloads()).payloads
    except (json_format.ParseError, UnicodeDecodeError) as error:
        msg = f"body: must be JSON of payloads, as Temporal's UI sends it: {str(error)[:200]}"
        raise InvalidInput(msg, field="body") from error


def _as_json(payloads: Sequence[Payload]) -> bytes:
    return json_format.MessageToJson(Payloads(payloads=payloads), indent=None).encode()
