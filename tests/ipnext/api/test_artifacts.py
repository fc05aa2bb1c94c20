"""Uploads: only what is missing, only what the digest says, never more than the limit."""

import asyncio
import hashlib
from collections import Counter

import pytest

from ipnext.api import artifacts
from ipnext.api.body_limit import MOST_BYTES
from ipnext.model.value import digest_of


async def test_only_missing_blobs_are_named(world):
    await world.upload(b"one")
    one, two = (hashlib.sha256(c).hexdigest() for c in (b"one", b"two"))
    answer = await world.http.post("/v1/artifacts/missing", json={"digests": [one, two]})
    assert answer.json() == {"missing": [two]}


async def test_a_snapshot_is_committed_once_its_blobs_are_there(world):
    manifest = world.rooms.snapshot_manifest(b"w")
    early = await world.http.post("/v1/artifacts/snapshots", json=manifest.model_dump(mode="json"))
    assert (early.status_code, early.json()["code"]) == (422, "ArtifactMissing")
    assert await world.upload(b"w") == manifest.digest == digest_of(manifest)


async def test_content_of_another_digest_is_refused_and_leaves_nothing(world):
    digest = hashlib.sha256(b"right").hexdigest()
    answer = await world.http.put(f"/v1/artifacts/blobs/{digest}", content=b"wrong")
    assert (answer.status_code, answer.json()["code"]) == (422, "ArtifactDigestMismatch")
    assert world.rooms.artifacts.missing([digest]) == {digest}


async def test_a_blob_over_the_limit_is_refused_with_and_without_a_stated_length(world):
    content = b"x" * 5000
    digest = hashlib.sha256(content).hexdigest()

    async def pieces():
        for start in range(0, 5000, 1000):
            yield content[start : start + 1000]

    for body in (content, pieces()):
        answer = await world.http.put(f"/v1/artifacts/blobs/{digest}", content=body)
        assert (answer.status_code, answer.json()["code"]) == (413, "TooLarge")
    assert world.rooms.artifacts.missing([digest]) == {digest}


@pytest.mark.parametrize(
    ("method", "path"),
    [("POST", "/v1/artifacts/snapshots"), ("PUT", "/v1/fleet"), ("POST", "/v1/models/ranker/publish")],
)
async def test_a_body_over_the_limit_is_refused_before_it_is_whole(world, method, path):
    """With a stated length before any of it is read, without one as soon as it is too much."""

    async def pieces():
        for _ in range(100):
            yield bytes(2**20)

    stated = await world.http.request(method, path, content=b"x", headers={"content-length": str(MOST_BYTES + 1)})
    assert (stated.status_code, stated.json()["code"]) == (413, "TooLarge")
    unstated = await world.http.request(method, path, content=pieces())
    assert (unstated.status_code, unstated.json()["code"]) == (413, "TooLarge")
    assert f"larger than {MOST_BYTES} bytes" in unstated.json()["message"]


async def test_a_digest_that_is_none_is_refused(world):
    answer = await world.http.put("/v1/artifacts/blobs/abc", content=b"x")
    assert (answer.status_code, answer.json()["code"]) == (400, "InvalidInput")


async def test_a_manifest_that_leads_outside_its_directory_is_refused(world):
    manifest = world.rooms.snapshot_manifest(b"w").model_dump(mode="json")
    manifest["files"][0]["path"] = "../escape"
    answer = await world.http.post("/v1/artifacts/snapshots", json=manifest)
    assert (answer.status_code, answer.json()["code"]) == (400, "InvalidInput")


@pytest.fixture
def stalled():
    """A body of which the first byte comes, and the rest once `go` is set."""
    go = asyncio.Event()

    async def pieces():
        yield b"x"
        await go.wait()

    return pieces, go


def address_of(content):
    return f"/v1/artifacts/blobs/{hashlib.sha256(content).hexdigest()}"


async def test_a_body_that_does_not_come_is_given_up(world, stalled, monkeypatch):
    monkeypatch.setattr(artifacts, "SILENT_SECONDS", 0.01)
    pieces, go = stalled

    answer = await world.http.put(address_of(b"x"), content=pieces())

    assert (answer.status_code, answer.json()["code"]) == (408, "TooSlow")
    assert "1 bytes so far" in answer.json()["message"]
    go.set()


async def test_uploads_that_hang_hold_up_no_other_endpoint(world, stalled):
    """More of them than there are threads for what is not asynchronous."""
    pieces, go = stalled
    hanging = [
        asyncio.create_task(world.http.put(address_of(b"x"), content=pieces()))
        for _ in range(artifacts.UPLOADS_AT_ONCE + 20)
    ]
    try:
        refused = [task async for task in first_of(hanging, 20)]
        assert {task.result().status_code for task in refused} == {503}
        assert (await world.http.get("/v1/models")).status_code == 200
    finally:
        go.set()
    answers = await asyncio.gather(*hanging)
    assert Counter(answer.status_code for answer in answers) == {204: artifacts.UPLOADS_AT_ONCE, 503: 20}


async def first_of(tasks, count):
    """So many that end first."""
    done = set()
    while len(done) < count:
        found, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in found - done:
            done.add(task)
            yield task
        tasks = [task for task in tasks if task not in done]
