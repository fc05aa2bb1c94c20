"""Bodies that two readers could read differently are refused, whatever asks for them."""

import json

import pytest

from ipnext.api.requests.json_bodies import MOST_MEMBERS, MOST_SEPARATORS, check_json
from ipnext.errors import InvalidInput
from ipnext.model.registry.registry import MOST_FILES


def doubled(document, name, value):
    """The document's JSON with one more member at its end."""
    return json.dumps(document)[:-1] + f", {json.dumps(name)}: {json.dumps(value)}}}"


async def send(world, method, path, content, **headers):
    return await world.http.request(
        method, path, content=content, headers={"content-type": "application/json"} | headers
    )


@pytest.mark.parametrize(
    ("method", "path", "document"),
    [
        ("PUT", "/v1/fleet", "fleet"),
        ("PUT", "/v1/models/ranker", "model"),
        ("POST", "/v1/artifacts/snapshots", "snapshot"),
        ("POST", "/v1/models/ranker/publish", {"parts": {}}),
        ("POST", "/v1/keys", {"name": "k"}),
        ("POST", "/v1/artifacts/missing", {"digests": []}),
    ],
)
async def test_a_body_that_names_a_member_twice_is_refused_by_its_name(world, method, path, document):
    own = {"fleet": world.rooms.fleet_document, "model": world.rooms.model_document}
    if document == "snapshot":
        document = world.rooms.snapshot_manifest(b"w").model_dump(mode="json")
    document = own[document]() if isinstance(document, str) else document
    name = next(iter(document))
    refused = await send(world, method, path, doubled(document, name, document[name]))
    assert (refused.status_code, refused.json()["code"], refused.json()["field"]) == (400, "InvalidInput", name)
    assert f"{name!r} is given twice" in refused.json()["message"]


async def test_a_name_twice_deep_inside_changes_nothing(applied):
    body = json.dumps(applied.rooms.model_document(qps=20)).replace('"qps": 20', '"qps": 20, "qps": 30')
    before = (await applied.http.get("/v1/models/ranker")).json()
    refused = await send(applied, "PUT", "/v1/models/ranker", body)
    assert (refused.status_code, refused.json()["field"]) == (400, "qps")
    assert (await applied.http.get("/v1/models/ranker")).json() == before


async def test_a_body_that_comes_in_pieces_is_checked_as_one(world):
    content = doubled(world.rooms.fleet_document(), "kind", "Fleet").encode()

    async def pieces():
        for start in range(0, len(content), 7):
            yield content[start : start + 7]

    refused = await send(world, "PUT", "/v1/fleet", pieces())
    assert refused.json()["field"] == "kind"


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be", "utf-32", "utf-32-le"])
async def test_another_encoding_than_utf_8_is_refused(world, encoding):
    content = json.dumps(world.rooms.fleet_document()).encode(encoding)
    refused = await send(world, "PUT", "/v1/fleet", content)
    assert (refused.status_code, refused.json()["code"]) == (400, "InvalidInput")
    assert "allowed: UTF-8" in refused.json()["message"]
    assert (await world.http.get("/v1/fleet")).status_code == 404


async def test_what_is_no_json_is_answered_as_before(world):
    refused = await send(world, "PUT", "/v1/fleet", b"{nothing")
    assert (refused.status_code, refused.json()["message"][:20]) == (400, "the body is not JSON")


LONG = b"x" * 100_000


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b'{"' + LONG, "the body is not JSON: Unterminated string starting at, at character 1"),
        (b'{"a": ' + LONG, "the body is not JSON: Expecting value, at character 6"),
        (b"{} " + LONG, "the body is not JSON: Extra data, at character 3"),
        (b"\xff" * 100_000, "the body is not JSON that this server reads: it is no text in UTF-8"),
        (b"[" * 90_000, "the body is not JSON that this server reads: it is nested too deeply"),
        (b'{"a": ' + b"1" * 100_000 + b"}", "it has a whole number of more than 4300 digits"),
        (b'{"' + LONG + b'": 1, "' + LONG + b'": 2}', "is given twice in one object"),
        (b'{"' + LONG + b'": 1}', ": unknown field; allowed here: apiVersion, kind, "),
        (b'{"kind": "' + LONG + b'", "metadata": {}, "spec": {}, "apiVersion": "ipnext/v1"}', ": "),
        (b'"' + LONG + b'"', "xxx"),
    ],
    ids=lambda given: given[:12] if isinstance(given, bytes) else None,
)
@pytest.mark.parametrize("path", ["/v1/fleet", "/v1/models/ranker"])
async def test_an_error_repeats_little_of_a_body(world, path, content, said):
    refused = await send(world, "PUT", path, content)
    assert (refused.status_code, refused.json()["code"]) == (400, "InvalidInput")
    assert said in refused.json()["message"]
    assert len(refused.content) < 2_000


async def test_blobs_are_no_documents(world):
    assert await world.upload(b'{"a": 1, "a": 2}')


@pytest.mark.parametrize("body", [b"", b"{}", b'{"a": {"b": 1}, "b": {"a": 1}}', b"[" * 100_000, b"\xff", b"\x00\xd8"])
def test_what_names_nothing_twice_passes(body):
    check_json(body)


def test_names_are_compared_as_they_read():
    with pytest.raises(InvalidInput, match="'a' is given twice"):
        check_json(rb'{"a": 1, "\u0061": 2}')


@pytest.mark.parametrize("value", ["{}", "1", '{"a":1}'])
async def test_a_body_of_too_many_values_is_refused_before_each_is_judged(world, value):
    content = '{"inputs": [' + ",".join([value] * MOST_SEPARATORS) + ",0]}"
    refused = await send(world, "POST", "/v1/artifacts/snapshots", content)
    assert (refused.status_code, refused.json()["code"]) == (413, "TooLarge")
    assert "commas and opening brackets; allowed: at most 100000" in refused.json()["message"]


@pytest.mark.parametrize("within", ["{}", '{{"spec": {}}}', '[{{"a": {}}}]'])
async def test_an_object_of_too_many_members_is_refused_before_each_is_judged(world, within):
    members = ",".join(f'"m{number}": 0' for number in range(MOST_MEMBERS + 1))
    refused = await send(world, "PUT", "/v1/models/ranker", within.format("{" + members + "}"))
    assert (refused.status_code, refused.json()["code"]) == (413, "TooLarge")
    assert "has 5001 members, from 'm0' on; allowed: at most 5000" in refused.json()["message"]


async def test_the_manifest_of_a_snapshot_of_the_most_files_is_judged(world):
    file = {"path": "f", "size_bytes": 1, "sha256": "a" * 64}
    manifest = world.rooms.snapshot_manifest(b"w").model_dump(mode="json") | {
        "files": [{**file, "path": f"f{number}"} for number in range(MOST_FILES)]
    }
    refused = await send(world, "POST", "/v1/artifacts/snapshots", json.dumps(manifest))
    assert (refused.status_code, refused.json()["code"]) == (400, "InvalidInput")
    assert "f0" in refused.json()["message"], "it was parsed, and its files are none of the engine's"


async def test_what_a_refusal_repeats_of_the_body_is_cut(world):
    document = world.rooms.model_document() | {"k" * 2**20: 1}
    refused = await send(world, "PUT", "/v1/models/ranker", json.dumps(document))
    assert (refused.status_code, refused.json()["code"]) == (400, "InvalidInput")
    assert len(refused.content) < 20_000


@pytest.mark.parametrize("text", [rb"\ud800", rb"a\uDFFFb", b"\xed\xa0\x80", rb"\ude00\ud83d"])
async def test_half_a_surrogate_pair_is_refused_wherever_it_stands(world, text):
    """No digest, file or database takes it: further inside it is an error of the server."""
    manifest = world.rooms.snapshot_manifest(b"w").model_dump(mode="json") | {"producer": {"tool": "TEXT"}}
    signed = {"payload": "e30=", "signatures": [{"keyid": "TEXT", "sig": "e30="}]}
    digest = "0" * 64
    for method, path, document in (
        ("POST", "/v1/artifacts/snapshots", manifest),
        ("PUT", f"/v1/artifacts/snapshots/{digest}/signature", signed),
        ("POST", "/v1/models/ranker/pause", {"reason": "TEXT"}),
        ("POST", "/v1/artifacts/missing", {"digests": [digest], "TEXT": 1}),
    ):
        refused = await send(world, method, path, json.dumps(document).encode().replace(b"TEXT", text))
        assert (refused.status_code, refused.json()["code"]) == (400, "InvalidInput"), (path, refused.text)
        assert "half a surrogate pair" in refused.json()["message"]


def test_a_whole_surrogate_pair_is_a_character():
    assert check_json(rb'["\ud83d\ude00"]') == ["\U0001f600"]
    assert check_json(rb'["\\ud800"]') == [r"\ud800"]
