"""Publish and roll back; an acknowledged change is never lost."""

import asyncio
import hashlib
import threading

import pytest

from ipnext import errors
from ipnext.api.requests.slots import SHARE
from ipnext.api.routes.models import publications
from ipnext.model.access.rights import Role
from ipnext.model.lifecycle.changes.change import ChangeState
from ipnext.model.lifecycle.status import Reason
from tests.waiting import PATIENCE_SECONDS, eventually


async def test_a_publish_is_recorded_and_handed_on(applied):
    answer = await applied.publish("a")
    assert answer.status_code == 202
    change = answer.json()
    assert (change["kind"], change["generation"], change["model"]) == ("publish", 1, "ranker")
    await eventually(lambda: [c.id for c in applied.rooms.lifecycle.submitted] == [change["id"]])

    def queued():
        with applied.rooms.store.read() as unit:
            return unit.change(change["id"]).state is ChangeState.QUEUED

    await eventually(queued)


async def test_the_same_change_id_twice_is_one_change(applied):
    first = (await applied.publish("a", change_id="mine-1")).json()
    second = (await applied.publish("a", change_id="mine-1")).json()
    assert first["id"] == second["id"] == "mine-1"
    assert len((await applied.http.get("/v1/models/ranker/changes")).json()["items"]) == 1
    other = await applied.publish("b", change_id="mine-1")
    assert (other.status_code, other.json()["code"]) == (409, "Conflict")


async def test_the_same_bytes_again_are_a_duplicate(applied):
    await applied.publish("a")
    again = await applied.publish("a")
    assert (again.status_code, again.json()["code"]) == (409, "DuplicateSnapshot")
    assert "snapshot 1" in again.json()["message"]


async def test_an_unknown_part_is_refused_with_the_known_ones(applied):
    digest = await applied.upload(b"x")
    body = {"parts": {"head": {"digest": digest}}}
    answer = await applied.http.post("/v1/models/ranker/publish", json=body)
    assert answer.status_code == 400
    assert (answer.json()["field"], answer.json()["allowed"]) == ("parts.head", ["sparse", "dense"])


async def test_a_first_publish_brings_every_part(applied):
    body = {"parts": {"dense": {"digest": await applied.upload(b"x")}}}
    answer = await applied.http.post("/v1/models/ranker/publish", json=body)
    assert answer.status_code == 400
    assert "sparse" in answer.json()["message"]


async def test_a_snapshot_that_was_not_uploaded_is_missing(applied):
    body = {"parts": {"dense": {"digest": "0" * 64}, "sparse": {"digest": "1" * 64}}}
    answer = await applied.http.post("/v1/models/ranker/publish", json=body)
    assert (answer.status_code, answer.json()["code"]) == (422, "ArtifactMissing")


async def test_a_directory_below_an_allowed_root_is_read_by_the_server(applied):
    root = applied.rooms.directory / "allowed"
    parts = {}
    for part in ("sparse", "dense"):
        applied.rooms.write_snapshot(root / part, part.encode())
        parts[part] = {"uri": (root / part).as_uri()}
    answer = await applied.http.post("/v1/models/ranker/publish", json={"parts": parts})
    assert answer.status_code == 202, answer.text
    snapshots = (await applied.http.get("/v1/models/ranker/snapshots")).json()["items"]
    assert [s["uri"].startswith(applied.rooms.artifacts.uri) for s in snapshots] == [True, True]


async def test_a_directory_outside_the_allowed_roots_is_refused(applied):
    outside = applied.rooms.directory / "outside"
    applied.rooms.write_snapshot(outside, b"x")
    sneaky = f"{(applied.rooms.directory / 'allowed').as_uri()}/../outside"
    for uri in (outside.as_uri(), sneaky, "file:///etc", "s3://other/prefix"):
        answer = await applied.http.post("/v1/models/ranker/publish", json={"parts": {"dense": {"uri": uri}}})
        assert (answer.status_code, answer.json()["code"]) == (403, "PathNotAllowed"), uri
    for uri in ("https://example.com/x", "dense", "file://"):
        answer = await applied.http.post("/v1/models/ranker/publish", json={"parts": {"dense": {"uri": uri}}})
        assert answer.status_code == 400, uri


async def test_only_an_administrator_is_told_which_directories_the_server_reads(applied):
    root = str(applied.rooms.directory / "allowed")
    body = {"parts": {"dense": {"uri": "file:///etc"}}}
    told = (await applied.http.post("/v1/models/ranker/publish", json=body)).json()
    assert (told["allowed"], root in told["message"]) == ([root], True)
    for role in (Role.PUBLISHER, Role.OPERATOR):
        headers = {"Authorization": f"Bearer {applied.rooms.add_key(role.value, role)}"}
        answer = await applied.http.post("/v1/models/ranker/publish", json=body, headers=headers)
        assert (answer.status_code, answer.json()["code"]) == (403, "PathNotAllowed")
        assert root not in answer.text
        assert "IPNEXT_ARTIFACT_ROOTS" in answer.json()["message"]
        assert answer.json()["value"] == "/etc"


@pytest.mark.parametrize(
    ("owner", "place", "status"),
    [
        ("search", "search", 202),
        ("search", "ads", 403),
        ("search", "shared", 403),
        ("*", "shared", 202),
        ("*", "ads", 403),
    ],
)
async def test_a_publish_reads_directories_of_its_owner_and_shared_ones_for_who_publishes_for_all(
    rooms, owner, place, status
):
    root = rooms.directory / "owned"
    rooms.settings = rooms.settings.model_copy(update={"artifact_roots": (root / "{owner}", root / "shared")})
    rooms.seed("ranker")
    rooms.write_snapshot(root / place / "snapshot", b"weights")
    headers = {"Authorization": f"Bearer {rooms.add_key('one', Role.PUBLISHER, owner=owner)}"}
    uri = (root / place / "snapshot").as_uri()
    async with rooms.client() as http:
        body = {"parts": {part: {"uri": uri} for part in ("sparse", "dense")}}
        answer = await http.post("/v1/models/ranker/publish", json=body, headers=headers)
    assert answer.status_code == status, answer.text


async def test_a_missing_or_changed_file_is_named(applied):
    directory = applied.rooms.directory / "allowed" / "dense"
    applied.rooms.write_snapshot(directory, b"weights")
    body = {"parts": {"dense": {"uri": directory.as_uri()}}}
    (directory / "file-0.txt").write_bytes(b"weightz")
    changed = await applied.http.post("/v1/models/ranker/publish", json=body)
    assert (changed.status_code, changed.json()["code"]) == (422, "ArtifactDigestMismatch")
    (directory / "file-0.txt").unlink()
    missing = await applied.http.post("/v1/models/ranker/publish", json=body)
    assert (missing.status_code, missing.json()["code"]) == (422, "ArtifactMissing")
    assert "file-0.txt" in missing.json()["message"]


@pytest.mark.parametrize("content", [b"weightz", b"longer than it was"])
async def test_what_the_servers_file_contains_is_told_to_operators_only(applied, content):
    """Its size and digest tell who guesses the content whether the guess is right."""
    directory = applied.rooms.directory / "allowed" / "dense"
    applied.rooms.write_snapshot(directory, b"weights")
    (directory / "file-0.txt").write_bytes(content)
    found = hashlib.sha256(content).hexdigest() if len(content) == 7 else f"{len(content)} bytes"

    keys = {
        role: applied.rooms.add_key(f"one-{role.value}", role) for role in (Role.PUBLISHER, Role.OPERATOR, Role.ADMIN)
    }

    async def told(role):
        body = {"parts": {"dense": {"uri": directory.as_uri()}}}
        headers = {"Authorization": f"Bearer {keys[role]}"}
        answer = await applied.http.post("/v1/models/ranker/publish", json=body, headers=headers)
        assert (answer.status_code, answer.json()["code"]) == (422, "ArtifactDigestMismatch")
        assert "'file-0.txt'" in answer.json()["message"]
        return found in answer.text

    assert [await told(role) for role in keys] == [False, True, True]
    # a blob that the store has already is compared by another way
    good = applied.rooms.directory / "allowed" / "good"
    applied.rooms.write_snapshot(good, b"weights")
    publish = {"parts": {part: {"uri": good.as_uri()} for part in ("dense", "sparse")}}
    assert (await applied.http.post("/v1/models/ranker/publish", json=publish)).status_code == 202
    assert [await told(role) for role in keys] == [False, True, True]


async def test_a_part_is_a_digest_or_a_uri(applied):
    for part in ({}, {"digest": "0" * 64, "uri": "file:///x"}, {"digest": "short"}):
        answer = await applied.http.post("/v1/models/ranker/publish", json={"parts": {"dense": part}})
        assert (answer.status_code, answer.json()["code"]) == (400, "InvalidInput")


async def test_a_change_acknowledged_while_temporal_is_down_is_submitted_later(applied):
    lifecycle = applied.rooms.lifecycle
    lifecycle.down = True
    answer = await applied.publish("a")
    assert answer.status_code == 202
    await applied.publish("b")
    ready = (await applied.http.get("/readyz")).json()
    assert (ready["ready"], ready["temporal"], ready["unsubmitted_changes"]) == (True, "down", 2)
    assert lifecycle.submitted == []
    lifecycle.down = False
    await eventually(lambda: [c.generation for c in lifecycle.submitted] == [1, 2])


async def test_a_change_left_by_a_crash_is_submitted_at_the_next_start(rooms):
    rooms.seed("ranker")
    rooms.publish_directly("ranker", "a", state=ChangeState.RECORDED)
    app = rooms.app()
    async with app.router.lifespan_context(app):
        await eventually(lambda: rooms.lifecycle.submitted)
    assert [c.id for c in rooms.lifecycle.submitted] == ["ranker-a"]


def end(applied, generation):
    """The publish of a generation is refused."""
    with applied.rooms.store.begin() as unit:
        change = next(c for c in unit.changes("ranker") if c.generation == generation)
        unit.update_change(change.id, state=ChangeState.REFUSED, reason=Reason.SCHEMA_MISMATCH)


async def test_a_rollback_during_a_rollout_goes_to_the_generation_that_serves(applied):
    for number, salt in enumerate("abc", start=1):
        await applied.publish(salt)
        if number < 3:
            applied.rooms.serve(number)
    answer = await applied.http.post("/v1/models/ranker/rollback", json={})
    named = await applied.http.post("/v1/models/ranker/rollback", json={"generation": 2})
    assert (answer.status_code, answer.json()["generation"]) == (202, 2)
    assert (named.status_code, named.json()["generation"]) == (202, 2)


async def test_a_rollback_goes_to_the_newest_other_generation_that_served(applied):
    for number, salt in enumerate("abc", start=1):
        await applied.publish(salt)
        if number < 3:
            applied.rooms.serve(number)
    end(applied, 3)
    answer = await applied.http.post("/v1/models/ranker/rollback", json={"changeId": "back"})
    assert (answer.status_code, answer.json()["generation"]) == (202, 1)
    applied.rooms.serve(1)
    again = await applied.http.post("/v1/models/ranker/rollback", json={"changeId": "back"})
    assert (again.status_code, again.json()["generation"]) == (202, 1)


async def test_a_rollback_to_what_never_served_is_refused_with_the_allowed_ones(applied):
    for number, salt in enumerate("abc", start=1):
        await applied.publish(salt)
        if number < 3:
            applied.rooms.serve(number)
    end(applied, 3)
    never = await applied.http.post("/v1/models/ranker/rollback", json={"generation": 3})
    assert (never.status_code, never.json()["allowed"]) == (400, ["1"])
    serving = await applied.http.post("/v1/models/ranker/rollback", json={"generation": 2})
    assert serving.status_code == 409


async def test_a_rollback_without_a_past_is_a_conflict(applied):
    answer = await applied.http.post("/v1/models/ranker/rollback", json={})
    assert (answer.status_code, answer.json()["code"]) == (409, "Conflict")


async def test_a_change_id_of_another_kind_is_a_conflict(applied):
    await applied.publish("a", change_id="one")
    answer = await applied.http.post("/v1/models/ranker/rollback", json={"changeId": "one"})
    assert (answer.status_code, answer.json()["code"]) == (409, "Conflict")


async def test_a_repair_is_recorded_once_while_it_is_open(applied):
    await applied.publish("a")
    applied.rooms.serve(1)
    first = await applied.http.post("/v1/models/ranker/repair", json={"changeId": "mend"})
    again = await applied.http.post("/v1/models/ranker/repair", json={})
    assert (first.status_code, first.json()["kind"], first.json()["id"]) == (202, "repair", "mend")
    assert (again.status_code, again.json()["id"]) == (202, "mend")


async def test_a_model_that_serves_nothing_has_nothing_to_repair(applied):
    answer = await applied.http.post("/v1/models/ranker/repair", json={})
    assert (answer.status_code, answer.json()["code"]) == (409, "Conflict")
    assert "serves no generation yet" in answer.json()["message"]


async def test_a_rollback_does_not_reach_a_generation_whose_bytes_were_collected(applied):
    for salt in "abc":
        applied.rooms.serve(applied.rooms.publish_directly("ranker", salt))
    with applied.rooms.store.begin("ranker") as unit:
        unit.release_snapshots("ranker", [("dense", 2)])
    refused = await applied.http.post("/v1/models/ranker/rollback", json={"generation": 2})
    assert (refused.status_code, refused.json()["allowed"]) == (400, ["1"])
    answer = await applied.http.post("/v1/models/ranker/rollback", json={})
    assert (answer.status_code, answer.json()["generation"]) == (202, 1)


@pytest.fixture
def slow_reads(monkeypatch):
    """Snapshots of directories are read until the test lets them; the fixture answers who is read for."""
    begun, may_end = [], threading.Event()

    def read_slowly(_store, uri, **_options):
        begun.append(uri)
        assert may_end.wait(PATIENCE_SECONDS)
        msg = "it is not there"
        raise errors.NotFound(msg)

    monkeypatch.setattr(publications, "ingest_uri", read_slowly)
    yield begun, may_end
    may_end.set()


def publish_slowly(world, name, **options):
    body = {"parts": {part: {"uri": f"file:///slow/{name}/{part}"} for part in ("dense", "sparse")}}
    return asyncio.create_task(world.http.post("/v1/models/ranker/publish", json=body, **options))


async def test_publishes_that_read_directories_keep_no_other_endpoint_waiting(applied, slow_reads):
    begun, may_end = slow_reads
    asked = [publish_slowly(applied, "a") for _ in range(60)]
    await eventually(lambda: begun)
    assert (await applied.http.get("/v1/models/ranker")).status_code == 200
    assert not any(task.done() for task in asked)
    may_end.set()
    assert {answer.status_code for answer in await asyncio.gather(*asked)} == {404}


async def test_a_client_that_publishes_many_directories_keeps_no_other_one_waiting(applied, slow_reads):
    begun, may_end = slow_reads
    other = {"Authorization": f"Bearer {applied.rooms.add_key('other', Role.ADMIN)}"}
    share = publications.READ_AT_ONCE // SHARE
    asked = [publish_slowly(applied, "a") for _ in range(60)]
    await eventually(lambda: len(begun) == share)
    asked.append(publish_slowly(applied, "b", headers=other))
    await eventually(lambda: len(begun) > share)
    assert begun[-1].startswith("file:///slow/b/")
    may_end.set()
    await asyncio.gather(*asked)


async def test_a_directory_with_a_file_that_the_engine_does_not_have_is_not_read(applied):
    directory = applied.rooms.directory / "allowed" / "dense"
    manifest = applied.rooms.write_snapshot(directory, b"weights")
    foreign = manifest.model_copy(update={"files": (manifest.files[0].model_copy(update={"path": "run.bin"}),)})
    (directory / "snapshot.json").write_text(foreign.model_dump_json())
    refused = await applied.http.post(
        "/v1/models/ranker/publish", json={"parts": {"dense": {"uri": directory.as_uri()}}}
    )
    error = refused.json()
    assert (refused.status_code, error["field"], error["value"]) == (400, "files.path", "run.bin")


async def test_a_stored_snapshot_with_a_foreign_file_is_not_published(applied):
    """One that was committed for another purpose, such as by a former release."""
    store, manifest = applied.rooms.artifacts, applied.rooms.snapshot_manifest(b"weights")
    store.put_blob(manifest.files[0].sha256, iter([b"weights"]))
    foreign = manifest.model_copy(update={"files": (manifest.files[0].model_copy(update={"path": "run.bin"}),)})
    store.commit(foreign)
    refused = await applied.http.post(
        "/v1/models/ranker/publish", json={"parts": {"dense": {"digest": foreign.digest}}}
    )
    assert (refused.status_code, refused.json()["field"]) == (400, "files.path")
