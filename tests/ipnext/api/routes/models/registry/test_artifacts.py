"""Uploads: only what is missing, only what the digest says, never more than the limit."""

import asyncio
import hashlib
import os
import time
from collections import Counter

import httpx
import pytest
from sqlmodel import func, select

from ipnext.access.keys import parse_key
from ipnext.api.requests.body_limit import MOST_BYTES
from ipnext.api.routes.models.registry import artifacts
from ipnext.artifacts import disk_reserve
from ipnext.artifacts.disk_reserve import DiskReserve
from ipnext.model.access.rights import Role
from ipnext.model.registry.registry import ArtifactFile
from ipnext.model.value import canonical_json, digest_of
from ipnext.store.tables.registry import ArtifactRow

pytestmark = pytest.mark.trust


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


async def test_uploads_leave_the_disks_reserve_and_a_key_can_still_be_revoked(world, monkeypatch):
    text = world.rooms.add_key("app", Role.PUBLISHER)
    world.rooms.artifacts._reserve = DiskReserve(world.rooms.directory, 1000)
    await world.upload(b"w")
    manifest = world.rooms.snapshot_manifest(b"w").model_dump(mode="json")
    monkeypatch.setattr(disk_reserve, "free_bytes", lambda _: 1004)

    async def pieces():
        yield b"5 by"
        yield b"te"
        pytest.fail("what does not fit is not read on")

    for refused in (
        await world.http.put(f"/v1/artifacts/blobs/{sha(b'5 byt')}", content=b"5 byt"),
        await world.http.post("/v1/artifacts/snapshots", json=manifest),
    ):
        assert (refused.status_code, refused.json()["code"]) == (507, "InsufficientStorage")
        for said in ("1004 bytes free", "reserve of 1000 bytes", "IPNEXT_DISK_RESERVE_BYTES"):
            assert said in refused.json()["message"]
    assert (await world.http.put(f"/v1/artifacts/blobs/{sha(b'4 by')}", content=b"4 by")).status_code == 204
    monkeypatch.setattr(disk_reserve, "free_bytes", lambda _: 999)
    refused = await world.http.put(f"/v1/artifacts/blobs/{sha(b'5 byte')}", content=pieces())
    assert (refused.status_code, refused.json()["code"]) == (507, "InsufficientStorage")
    assert (await world.http.delete(f"/v1/keys/{parse_key(text).id}")).status_code < 300


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


async def test_uploads_that_hang_hold_up_no_other_endpoint_and_no_other_key(world, stalled):
    """More of them than there are threads for what is not asynchronous."""
    pieces, go = stalled
    share = artifacts.UPLOADS_AT_ONCE // 4
    hanging = [
        asyncio.create_task(world.http.put(address_of(b"x"), content=pieces()))
        for _ in range(artifacts.UPLOADS_AT_ONCE + 20)
    ]
    try:
        refused = [task async for task in first_of(hanging, artifacts.UPLOADS_AT_ONCE + 20 - share)]
        assert {task.result().status_code for task in refused} == {429}
        assert f"{share} uploads of yours" in refused[0].result().json()["message"]
        assert (await world.http.get("/v1/models")).status_code == 200
        other = {"authorization": f"Bearer {world.rooms.add_key('other', Role.PUBLISHER)}"}
        assert (await world.http.put(address_of(b"y"), content=b"y", headers=other)).status_code == 204
    finally:
        go.set()
    answers = await asyncio.gather(*hanging)
    assert Counter(answer.status_code for answer in answers)[204] == share


async def test_an_upload_at_a_trickle_is_refused_by_its_deadline(world, monkeypatch):
    monkeypatch.setattr(
        "ipnext.api.routes.models.registry.artifacts.UploadPace.of", lambda _: artifacts.UploadPace(1000, 0.3)
    )

    async def trickle():
        while True:
            yield b"x"
            await asyncio.sleep(0.05)

    answer = await world.http.put(address_of(b"x"), content=trickle())
    assert (answer.status_code, answer.json()["code"]) == (408, "TooSlow")
    assert "at least 1000 bytes/s are wanted (IPNEXT_UPLOAD_BYTES_PER_SECOND)" in answer.json()["message"]


async def first_of(tasks, count):
    """So many that end first."""
    done = set()
    while len(done) < count:
        found, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in found - done:
            done.add(task)
            yield task
        tasks = [task for task in tasks if task not in done]


def sha(content):
    return hashlib.sha256(content).hexdigest()


async def put(world, content, **options):
    return await world.http.put(f"/v1/artifacts/blobs/{sha(content)}", content=content, **options)


def owner_of(name, **quotas):
    return {"apiVersion": "ipnext/v1", "kind": "Owner", "metadata": {"name": name}, "spec": {"quotas": quotas}}


async def apply_owner(world, **quotas):
    answer = await world.http.put("/v1/owners/search", json=owner_of("search", **quotas))
    answer.raise_for_status()
    return answer.json()


async def documents(world):
    """Bytes of the manifests that count for the owner before anything is uploaded."""
    with world.rooms.store.read() as unit:
        return unit.document_bytes("ranker")


async def stored(world):
    owner = (await world.http.get("/v1/owners/search")).json()
    return next((use for use in owner["usage"] if use["quota"] == "artifactBytes"), None)


async def test_an_upload_for_a_model_counts_for_its_owner_and_is_refused_beyond_the_quota(world):
    world.rooms.seed("ranker")
    before = await documents(world)
    await apply_owner(world, artifactBytes=before + 10)
    assert (await put(world, b"eight by", params={"model": "ranker"})).status_code == 204
    refused = await put(world, b"three", params={"model": "ranker"})
    assert (refused.status_code, refused.json()["code"]) == (409, "QuotaExceeded")
    used = f"owner 'search' uses {before + 8} of {before + 10} bytes of artifacts and manifests (quotas.artifactBytes)"
    assert used in refused.json()["message"]
    assert world.rooms.artifacts.missing([sha(b"three")]) == {sha(b"three")}
    assert await stored(world) == {"quota": "artifactBytes", "used": before + 8, "limit": before + 10, "placed": None}


async def test_of_uploads_at_the_same_time_no_more_pass_than_the_quota_has_room_for(world):
    world.rooms.seed("ranker")
    before = await documents(world)
    await apply_owner(world, artifactBytes=before + 35)
    answers = await asyncio.gather(*(put(world, b"%010d" % n, params={"model": "ranker"}) for n in range(8)))
    assert Counter(answer.status_code for answer in answers) == {204: 3, 409: 5}
    assert (await stored(world))["used"] == before + 30


async def test_a_publish_beyond_the_quota_is_refused_and_one_within_it_counts(world):
    world.rooms.seed("ranker")
    before = await documents(world)
    await apply_owner(world, artifactBytes=before + 10)
    digests = {part: await world.upload(content) for part, content in (("sparse", b"123456"), ("dense", b"abcdef"))}
    body = {"changeId": "c1", "parts": {part: {"digest": digest} for part, digest in digests.items()}}
    refused = await world.http.post("/v1/models/ranker/publish", json=body)
    assert (refused.status_code, refused.json()["code"]) == (409, "QuotaExceeded")
    manifests = sum(len(canonical_json(world.rooms.snapshot_manifest(content))) for content in (b"123456", b"abcdef"))
    for room in (
        12,
        12 + manifests,
        12 + 2 * manifests - 1,
    ):  # each manifest is in the artifact store and in the record
        await apply_owner(world, artifactBytes=before + room)
        refused = await world.http.post("/v1/models/ranker/publish", json=body)
        assert (refused.status_code, refused.json()["code"]) == (409, "QuotaExceeded"), room
    await apply_owner(world, artifactBytes=before + 12 + 2 * manifests)
    for _ in range(2):  # the same change again counts nothing
        assert (await world.http.post("/v1/models/ranker/publish", json=body)).status_code == 202
    assert (await stored(world))["used"] == before + 12 + 2 * manifests


async def test_what_no_owner_limits_is_limited_by_the_platform(world):
    world.rooms.settings = world.rooms.settings.model_copy(update={"artifact_bytes": 10})
    async with world.rooms.client() as client:
        content = b"more than ten bytes"
        answer = await client.put(f"/v1/artifacts/blobs/{sha(content)}", content=content)
    assert (answer.status_code, answer.json()["code"]) == (409, "QuotaExceeded")
    assert "of 10 bytes of artifacts and manifests (IPNEXT_ARTIFACT_BYTES)" in answer.json()["message"]


@pytest.mark.parametrize("headers", [{}, {"content-length": "4", "transfer-encoding": "chunked"}])
async def test_an_upload_without_a_size_is_told_as_what_it_counts(world, headers):
    world.rooms.settings = world.rooms.settings.model_copy(update={"artifact_bytes": 10})

    async def pieces():
        yield b"four"

    async with world.rooms.client() as client:
        address = f"/v1/artifacts/blobs/{sha(b'four')}"
        answer = await client.put(address, content=pieces(), headers=headers)
        assert (await client.put(address, content=b"four")).status_code == 204
    refused = answer.json()
    assert (answer.status_code, refused["code"], refused["field"]) == (409, "QuotaExceeded", "content-length")
    assert "value" not in refused
    said = "content-length: the upload has none and counts as the largest blob (IPNEXT_MAX_UPLOAD_BYTES)"
    assert refused["message"].startswith(said)


async def test_uploads_of_all_sessions_of_a_key_count_together(world):
    world.rooms.settings = world.rooms.settings.model_copy(update={"artifact_bytes": 10})
    key = {"Authorization": f"Bearer {world.rooms.add_key('ci', Role.PUBLISHER)}"}
    page = {"Sec-Fetch-Site": "same-origin"}
    transport = httpx.ASGITransport(app=world.rooms.app())
    async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
        codes = [(await client.put(address_of(b"six by"), content=b"six by", headers=key)).status_code]
        for content in (b"not ten", b"too many"):
            assert (await client.post("/v1/sessions", headers=key)).status_code == 201
            codes.append((await client.put(address_of(content), content=content, headers=page)).status_code)
            client.cookies.clear()
    assert codes == [204, 409, 409]


async def test_an_upload_that_is_refused_counts_for_nobody(world):
    world.rooms.seed("ranker")
    before = await documents(world)
    await apply_owner(world, artifactBytes=before + 10)
    wrong = await world.http.put(f"/v1/artifacts/blobs/{sha(b'right')}", content=b"wrong", params={"model": "ranker"})
    assert wrong.status_code == 422
    assert await stored(world) == {"quota": "artifactBytes", "used": before, "limit": before + 10, "placed": None}


async def commit(world, manifest, **options):
    document = manifest.model_dump(mode="json")
    return await world.http.post("/v1/artifacts/snapshots", json=document, **options)


def artifact_rows(world):
    with world.rooms.store.read() as unit:
        return unit._session.exec(select(func.count()).select_from(ArtifactRow)).one()


def audit_entries(world):
    with world.rooms.store.read() as unit:
        return unit.audit_head().sequence


async def test_a_commit_that_is_refused_leaves_nothing(world):
    rooms = world.rooms
    named = tuple(ArtifactFile(path=f"{n}.txt", sha256=sha(b"%d" % n), size_bytes=1) for n in range(20))
    absent = rooms.snapshot_manifest(b"w").model_copy(update={"files": named})
    await world.upload(b"right")
    right = rooms.snapshot_manifest(b"right")
    other_size = right.model_copy(update={"files": (right.files[0].model_copy(update={"size_bytes": 4}),)})
    before = (artifact_rows(world), audit_entries(world))
    for manifest, code in ((absent, "ArtifactMissing"), (other_size, "ArtifactDigestMismatch")):
        refused = await commit(world, manifest)
        assert (refused.status_code, refused.json()["code"]) == (422, code)
    assert (artifact_rows(world), audit_entries(world)) == before


async def test_manifests_count_for_the_owner_that_they_are_committed_for(world):
    world.rooms.seed("ranker")
    await world.upload(b"w")
    before = await documents(world)
    await apply_owner(world, artifactBytes=before + 2000)
    codes = []
    for number in range(20):
        producer = {"text": f"{number:0900d}"}
        manifest = world.rooms.snapshot_manifest(b"w").model_copy(update={"producer": producer})
        answer = await commit(world, manifest, params={"model": "ranker"})
        codes.append(answer.status_code)
    assert codes == [201] + [409] * 19
    assert answer.json()["message"].startswith("manifest: ")
    assert f"of {before + 2000} bytes of artifacts and manifests (quotas.artifactBytes)" in answer.json()["message"]
    assert before + 900 < (await stored(world))["used"] <= before + 2000


async def test_a_manifest_that_is_committed_for_no_model_counts_for_who_does(world):
    await world.upload(b"w")
    world.rooms.settings = world.rooms.settings.model_copy(update={"artifact_bytes": 1000})
    async with world.rooms.client() as client:
        manifest = world.rooms.snapshot_manifest(b"w").model_copy(update={"producer": {"text": "x" * 1000}})
        refused = await client.post("/v1/artifacts/snapshots", json=manifest.model_dump(mode="json"))
    assert (refused.status_code, refused.json()["code"]) == (409, "QuotaExceeded")


async def test_nobody_commits_for_a_model_of_an_owner_that_is_not_theirs(world):
    world.rooms.seed("ranker")
    await world.upload(b"w")
    key = world.rooms.add_key("other", Role.PUBLISHER, owner="ads")
    headers = {"Authorization": f"Bearer {key}"}
    answer = await commit(world, world.rooms.snapshot_manifest(b"w"), params={"model": "ranker"}, headers=headers)
    assert answer.status_code == 404


async def apply_model(world, *, name="ranker", text="", query="", owner="search"):
    document = world.rooms.model_document(name)
    document["metadata"] |= {"owner": owner, "annotations": {"text": text}}
    return await world.http.put(f"/v1/models/{name}{query}", json=document)


async def test_a_models_manifest_counts_for_its_owner_and_only_growth_is_refused(world):
    world.rooms.seed("ranker")
    before = await documents(world)
    await apply_owner(world, artifactBytes=before + 500)
    refused = await apply_model(world, text="x" * 1000)
    assert (refused.status_code, refused.json()["code"], refused.json()["field"]) == (409, "QuotaExceeded", "spec")
    assert (await apply_model(world, text="x" * 1000, query="?dryRun=true")).status_code == 409
    assert (await apply_model(world, text="x" * 400)).status_code == 200
    assert before + 400 < (await stored(world))["used"] <= before + 500
    await apply_owner(world, artifactBytes=10)
    assert (await apply_model(world, text="x" * 300)).status_code == 200
    assert (await apply_model(world, text="x" * 301)).status_code == 409
    assert (await apply_model(world, name="second")).status_code == 409


async def test_a_model_that_gets_another_owner_brings_its_documents(world):
    world.rooms.seed("ranker")
    await world.http.put("/v1/owners/ads", json=owner_of("ads", artifactBytes=10))
    moved = await apply_model(world, owner="ads")
    assert (moved.status_code, moved.json()["code"]) == (409, "QuotaExceeded")


async def test_nobody_uploads_for_a_model_of_an_owner_that_is_not_theirs(world):
    world.rooms.seed("ranker")
    key = world.rooms.add_key("other", Role.PUBLISHER, owner="ads")
    answer = await put(world, b"x", params={"model": "ranker"}, headers={"Authorization": f"Bearer {key}"})
    assert answer.status_code == 404
    assert world.rooms.artifacts.missing([sha(b"x")]) == {sha(b"x")}


async def collected(world, *, dry_run=False):
    return await world.http.request("GET" if dry_run else "POST", "/v1/artifacts/collect")


def grow_old(world, digest):
    then = time.time() - 3 * 86_400
    os.utime(world.rooms.artifacts.root / "blobs" / digest, (then, then))


async def test_a_dry_run_shows_what_a_collection_removes(world):
    content = b"nobody names it"
    world.rooms.artifacts.put_blob(sha(content), iter([content]))
    grow_old(world, sha(content))
    shown = (await collected(world, dry_run=True)).json()
    assert (shown["dryRun"], shown["blobs"], shown["items"][0]["name"]) == (True, 1, sha(content))
    assert not world.rooms.artifacts.missing([sha(content)])
    assert (await collected(world)).json()["blobs"] == 1
    assert world.rooms.artifacts.missing([sha(content)]) == {sha(content)}
    entries = (await world.http.get("/v1/audit", params={"action": "artifacts.collect"})).json()["items"]
    assert [entry["outcome"] for entry in entries] == ["asked"]


async def test_a_blob_that_a_client_was_told_is_there_stays(world):
    content = b"held for long"
    world.rooms.artifacts.put_blob(sha(content), iter([content]))
    grow_old(world, sha(content))
    assert (await world.http.post("/v1/artifacts/missing", json={"digests": [sha(content)]})).json() == {"missing": []}
    assert (await collected(world)).json()["blobs"] == 0


async def test_an_operator_collects_nothing(world):
    key = world.rooms.add_key("op", Role.OPERATOR)
    for method in ("GET", "POST"):
        answer = await world.http.request(method, "/v1/artifacts/collect", headers={"Authorization": f"Bearer {key}"})
        assert answer.status_code == 403


async def test_files_that_no_snapshot_of_the_engine_has_are_not_committed(world):
    """Else one blob costs its whole size under each of its names, wherever the snapshot is laid out."""
    await world.upload(b"w")
    one = world.rooms.snapshot_manifest(b"w")
    names = [*(f"n/{number}.txt" for number in range(65)), "other.bin"]
    for number, paths in ((64, names[:65]), (-1, names[-1:])):
        files = tuple(one.files[0].model_copy(update={"path": path}) for path in paths)
        refused = await commit(world, one.model_copy(update={"files": files}))
        error = refused.json()
        assert (refused.status_code, error["code"], error["field"]) == (400, "InvalidInput", "files.path")
        assert (error["value"], "64 of *.txt" in error["allowed"]) == (names[number], True)


async def test_each_further_name_of_a_blob_counts_for_the_owner(world):
    world.rooms.seed("ranker")
    await world.upload(b"w" * 1000)
    one = world.rooms.snapshot_manifest(b"w" * 1000)
    files = tuple(one.files[0].model_copy(update={"path": f"{number}.txt"}) for number in range(3))
    await apply_owner(world, artifactBytes=await documents(world) + 2000)
    refused = await commit(world, one.model_copy(update={"files": files}), params={"model": "ranker"})
    assert (refused.status_code, refused.json()["code"]) == (409, "QuotaExceeded")
    assert (await commit(world, one, params={"model": "ranker"})).status_code == 201
