"""Payloads that are encrypted before Temporal stores them."""

import asyncio
import json
from base64 import b64encode
from threading import Thread

import pytest
from temporalio.api.common.v1 import Payload
from temporalio.api.failure.v1 import Failure
from temporalio.exceptions import ApplicationError

from ipnext.errors import InvalidInput
from ipnext.model.value import Value
from ipnext.payload_keys import LOOK_SECONDS, MAX_BYTES, MOST_KEYS, PayloadKeys, PayloadKeysFile, read_payload_keys
from ipnext.payloads import ENCRYPTED, EncryptionCodec, data_converter, decode_json, encode_json
from ipnext.temporal_access import TemporalSettings, read_access, stamp_of

FIRST, SECOND = bytes(range(32)), bytes(range(1, 33))
BOTH = PayloadKeys("second", {"first": FIRST, "second": SECOND})
ONE = PayloadKeys("first", {"first": FIRST})


def converter_of(keys):
    return data_converter(lambda: keys)


class Secret(Value):
    reason: str


@pytest.fixture
def text():
    return {"encrypt": "first", "keys": {"first": b64encode(FIRST).decode(), "second": b64encode(SECOND).decode()}}


@pytest.fixture
def file(tmp_path, text):
    path = tmp_path / "keys.json"
    path.write_text(json.dumps(text))
    return path


async def test_what_temporal_stores_shows_nothing_of_a_value():
    converter = converter_of(BOTH)
    (payload,) = await converter.encode([Secret(reason="the merger")])
    assert b"merger" not in payload.SerializeToString()
    assert dict(payload.metadata) == {"encoding": ENCRYPTED, "encryption-key-id": b"second"}
    assert await converter.decode([payload], [Secret]) == [Secret(reason="the merger")]


async def test_equal_values_are_stored_differently():
    first, second = await converter_of(ONE).encode([Secret(reason="a"), Secret(reason="a")])
    assert first.data != second.data


async def test_values_of_a_former_key_and_of_clear_text_are_read():
    for former in (data_converter(), converter_of(ONE)):
        payloads = await former.encode([Secret(reason="old")])
        assert await converter_of(BOTH).decode(payloads, [Secret]) == [Secret(reason="old")]


async def test_keys_that_only_decrypt_store_clear_text():
    keys = PayloadKeys(None, {"first": FIRST})
    (payload,) = await converter_of(keys).encode([Secret(reason="plain")])
    assert b"plain" in payload.data
    sealed = await converter_of(ONE).encode([Secret(reason="sealed")])
    assert await converter_of(keys).decode(sealed, [Secret]) == [Secret(reason="sealed")]


async def test_an_unknown_key_is_named_with_the_known_ones():
    payloads = await converter_of(BOTH).encode([Secret(reason="new")])
    with pytest.raises(InvalidInput, match=r"encrypted by the key 'second', which is none of first"):
        await converter_of(ONE).decode(payloads, [Secret])


class Switching(list[Payload]):
    """Payloads during whose iteration another thread of the process uses other keys."""

    def __init__(self, payloads, switch):
        super().__init__(payloads)
        self._switch = switch

    def __iter__(self):
        for payload in super().__iter__():
            self._switch()
            yield payload


async def test_keys_that_another_thread_replaces_do_not_disturb_a_call():
    now = [ONE]
    codec = EncryptionCodec(lambda: now[0])

    def switch():
        now[0] = PayloadKeys("other", {"other": SECOND})
        thread = Thread(target=lambda: asyncio.run(codec.encode([Payload(data=b"b")])))
        thread.start()
        thread.join()

    (sealed,) = await codec.encode(Switching([Payload(data=b"a")], switch))
    now[0] = ONE
    assert await codec.decode(Switching([sealed], switch)) == [Payload(data=b"a")]


@pytest.mark.parametrize("place", [0, 11, 12, -1])
async def test_a_changed_payload_is_refused(place):
    (payload,) = await converter_of(ONE).encode([Secret(reason="a")])
    data = bytearray(payload.data)
    data[place] ^= 1
    payload.data = bytes(data)
    with pytest.raises(InvalidInput, match="was changed since"):
        await converter_of(ONE).decode([payload], [Secret])


@pytest.mark.parametrize("data", [b"", b"short", bytes(12), bytes(40)])
async def test_bytes_that_are_no_ciphertext_are_refused(data):
    payload = Payload(metadata={"encoding": ENCRYPTED, "encryption-key-id": b"first"}, data=data)
    with pytest.raises(InvalidInput, match="was changed since"):
        await converter_of(ONE).decode([payload])


async def test_a_payload_cannot_be_passed_off_as_one_of_another_key():
    same = PayloadKeys("first", {"first": FIRST, "second": FIRST})
    (payload,) = await converter_of(same).encode([Secret(reason="a")])
    payload.metadata["encryption-key-id"] = b"second"
    with pytest.raises(InvalidInput, match="was changed since"):
        await converter_of(same).decode([payload], [Secret])


async def test_the_text_of_a_failure_is_encrypted_and_its_type_is_not():
    converter, failure = converter_of(ONE), Failure()
    await converter.encode_failure(ApplicationError("the merger failed", type="GateFailed"), failure)
    assert b"merger" not in failure.SerializeToString()
    assert failure.application_failure_info.type == "GateFailed"
    found = await converter.decode_failure(failure)
    assert str(found).endswith("the merger failed")


def test_a_file_of_keys_is_read(file):
    found = read_payload_keys(file)
    assert (found.encrypt, dict(found.keys)) == ("first", {"first": FIRST, "second": SECOND})
    assert repr(found).startswith("<")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"encrypt": "third"}, "encrypt: is none of the keys; allowed: first, second, null"),
        ({"encrypt": 3}, "encrypt: is none of the keys"),
        ({"encrypt": []}, "encrypt: is none of the keys"),
        ({"encrypt": b64encode(FIRST).decode()}, "encrypt: is none of the keys"),
        ({"keys": {}}, f"keys: 0 of them; allowed: 1 to {MOST_KEYS}"),
        ({"keys": {str(n): b64encode(FIRST).decode() for n in range(MOST_KEYS + 1)}}, "keys: 65 of them"),
        ({"keys": {"first": "AAAA"}}, "keys.first: has 3 bytes; allowed: 32"),
        ({"keys": {"first": "!"}}, "keys.first: is no base64"),
        ({"keys": {"first": 7}}, "keys.first: is no base64"),
        ({"keys": {"first": "\u00e9"}}, "keys.first: is no base64"),
        ({"keys": {"a b": ""}}, "keys: a name is none; allowed: 1 to 40 letters"),
        ({"keys": {b64encode(FIRST).decode(): "first"}}, "keys: a name is none"),
        ({"keys": {b64encode(FIRST).decode().rstrip("="): "first"}}, "keys: a name is none"),
        ({"keys": {FIRST.hex(): "first"}}, "keys: a name is none"),
        ({"keys": []}, "has another form"),
        ({"more": 1}, "has another form"),
    ],
)
def test_a_file_of_another_form_is_refused_without_its_keys(file, text, change, words):
    file.write_text(json.dumps({**text, **change}))
    with pytest.raises(InvalidInput) as refused:
        read_payload_keys(file)
    assert words in refused.value.message
    assert "IPNEXT_TEMPORAL_PAYLOAD_KEYS_FILE" in refused.value.message
    assert b64encode(FIRST).decode().rstrip("=") not in refused.value.message
    assert FIRST.hex() not in refused.value.message


@pytest.mark.parametrize("twice", ["encrypt", "first"])
def test_a_file_with_a_name_twice_is_refused(file, twice):
    file.write_text(file.read_text().replace(f'"{twice}":', f'"{twice}": null, "{twice}":'))
    with pytest.raises(InvalidInput, match="has a name twice"):
        read_payload_keys(file)


def test_no_more_of_a_file_is_read_than_keys_need(file, text):
    file.write_text(json.dumps(text) + " " * MAX_BYTES)
    with pytest.raises(InvalidInput, match=f"is larger than {MAX_BYTES} bytes"):
        read_payload_keys(file)


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff", b"[" * 50_000])
def test_a_file_that_is_no_object_is_refused(file, content):
    file.write_bytes(content)
    with pytest.raises(InvalidInput, match="the form is"):
        read_payload_keys(file)


def test_a_key_file_that_becomes_invalid_stops_no_renewal_of_the_connection(file):
    settings = TemporalSettings(temporal_payload_keys_file=file)
    before = read_access(settings)
    assert before.payload_keys().encrypt == "first"
    file.write_text("none")
    assert stamp_of(settings) == before.stamp
    assert read_access(settings).payload_keys is not None


async def test_the_json_of_remote_codecs_is_encoded_and_decoded():
    codec = EncryptionCodec(lambda: ONE)
    given = {
        "payloads": [{"metadata": {"encoding": b64encode(b"json/plain").decode()}, "data": b64encode(b'"x"').decode()}]
    }
    sealed = await encode_json(codec, json.dumps(given).encode())
    assert b64encode(ENCRYPTED) in sealed
    assert json.loads(await decode_json(codec, sealed)) == given


@pytest.mark.parametrize("content", [b"", b'{"other": 1}', b'{"payloads": [{"data": 1}]}', b"\xff"])
async def test_json_that_is_no_payloads_is_refused(content):
    with pytest.raises(InvalidInput, match="body"):
        await decode_json(EncryptionCodec(lambda: ONE), content)


async def test_a_converter_follows_the_file_and_keeps_the_former_keys_while_it_is_invalid(file, text):
    now = [0.0]
    keys = PayloadKeysFile(file, clock=lambda: now[0])
    converter = data_converter(keys.current)

    async def name_of_key():
        now[0] += LOOK_SECONDS
        (payload,) = await converter.encode([Secret(reason="a")])
        return payload.metadata["encryption-key-id"]

    assert await name_of_key() == b"first"
    for content, expected in (
        ({**text, "encrypt": "second"}, b"second"),
        ({"encrypt": "third"}, b"second"),
        ({**text, "encrypt": "first"}, b"first"),
    ):
        file.unlink()
        file.write_text(json.dumps(content))
        assert await name_of_key() == expected
    file.unlink()
    assert await name_of_key() == b"first"


PASSED_ON = "Cancel requested by workflow with run id 1-a with reason: "


@pytest.mark.parametrize("prefix", ["", PASSED_ON])
def test_a_text_is_encrypted_and_read_also_passed_on(prefix):
    codec = EncryptionCodec(lambda: ONE)
    sealed = codec.seal_text("aborted by anna: \u00e9")
    assert "anna" not in sealed
    assert codec.open_text(prefix + sealed) == f"{prefix}aborted by anna: \u00e9"


@pytest.mark.parametrize("text", ["", "aborted by anna: [encrypted first AAAA]", "[encrypted first A]", PASSED_ON])
def test_a_clear_text_is_read_as_it_is(text):
    assert EncryptionCodec(lambda: ONE).open_text(text) == text


def test_a_text_without_a_key_that_encrypts_and_an_empty_one_stay():
    assert EncryptionCodec(lambda: PayloadKeys(None, {"first": FIRST})).seal_text("a") == "a"
    assert EncryptionCodec(lambda: ONE).seal_text("") == ""


def test_a_text_of_an_unknown_key_is_refused():
    sealed = EncryptionCodec(lambda: BOTH).seal_text("a")
    with pytest.raises(InvalidInput, match="none of first"):
        EncryptionCodec(lambda: ONE).open_text(sealed)
