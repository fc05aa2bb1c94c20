"""The deny-list at the API: who is refused what, what goes back, and what stands in the audit."""

import pytest

from ipnext.model.lifecycle.changes.change import ChangeKind

pytestmark = pytest.mark.trust


def snapshot(world, number, part="dense"):
    with world.rooms.store.read() as unit:
        return unit.snapshot("ranker", part, number)


async def deny(world, digest, reason="poisoned"):
    answer = await world.http.put(f"/v1/denials/{digest}", json={"reason": reason})
    assert answer.status_code == 200, answer.text
    return answer.json()


async def test_a_denied_digest_can_not_be_published_until_the_denial_ends(applied):
    digest = await applied.upload(b"x")
    await deny(applied, digest)
    body = {"parts": {"dense": {"digest": digest}, "sparse": {"digest": digest}}}
    refused = await applied.http.post("/v1/models/ranker/publish", json=body)
    assert (refused.status_code, refused.json()["code"]) == (422, "SnapshotDenied")
    assert "is denied: poisoned" in refused.json()["message"]
    ended = await applied.http.delete(f"/v1/denials/{digest}?reason=rebuilt")
    assert ended.json()["digest"] == digest
    assert (await applied.http.post("/v1/models/ranker/publish", json=body)).status_code == 202


async def test_a_denial_of_what_serves_answers_with_its_snapshots_and_goes_back(applied):
    for salt in "ab":
        applied.rooms.serve(applied.rooms.publish_directly("ranker", salt))
    file = snapshot(applied, 2).manifest.files[0].sha256
    shown = await deny(applied, file)
    assert (shown["isCarriedOut"], shown["goingBack"], shown["staying"]) == (True, ["ranker"], [])
    assert ("ranker", "dense", 2) in [(s["model"], s["part"], s["number"]) for s in shown["snapshots"]]
    with applied.rooms.store.read() as unit:
        back = [each.generation for each in unit.changes("ranker") if each.kind is ChangeKind.ROLLBACK]
    assert back == [1]
    refused = await applied.http.post("/v1/models/ranker/rollback", json={"generation": 2})
    assert (refused.status_code, refused.json()["code"]) == (422, "SnapshotDenied")


async def test_a_rollback_of_a_user_passes_what_is_denied(applied):
    for salt in "abc":
        applied.rooms.serve(applied.rooms.publish_directly("ranker", salt))
    await deny(applied, snapshot(applied, 2).digest)
    answer = await applied.http.post("/v1/models/ranker/rollback", json={})
    assert (answer.status_code, answer.json()["generation"]) == (202, 1)


async def test_without_a_clean_generation_a_rollback_says_so(applied):
    for salt in "ab":
        applied.rooms.serve(applied.rooms.publish_directly("ranker", salt))
    await deny(applied, snapshot(applied, 1).digest)
    answer = await applied.http.post("/v1/models/ranker/rollback", json={})
    assert answer.status_code == 409
    assert "(1 are denied)" in answer.json()["message"]


async def test_denials_are_listed_newest_first_and_read_one_by_one(applied):
    for number in range(3):
        await deny(applied, f"{number}" * 64, reason=f"r{number}")
    page = (await applied.http.get("/v1/denials?limit=2")).json()
    rest = (await applied.http.get(f"/v1/denials?limit=2&after={page['next']}")).json()
    assert [each["reason"] for each in (*page["items"], *rest["items"])] == ["r2", "r1", "r0"]
    assert (await applied.http.get(f"/v1/denials/{'1' * 64}")).json()["reason"] == "r1"
    missing = await applied.http.get(f"/v1/denials/{'9' * 64}")
    assert missing.status_code == 404
    assert (await applied.http.delete(f"/v1/denials/{'9' * 64}")).status_code == 404


@pytest.mark.parametrize(
    ("digest", "body"),
    [
        ("xyz", {"reason": "r"}),
        ("A" * 64, {"reason": "r"}),
        ("a" * 63, {"reason": "r"}),
        ("a" * 64, {}),
        ("a" * 64, {"reason": " "}),
        ("a" * 64, {"reason": "r" * 1001}),
        ("a" * 64, {"reason": "r", "more": 1}),
    ],
)
async def test_a_denial_of_another_form_is_refused(applied, digest, body):
    answer = await applied.http.put(f"/v1/denials/{digest}", json=body)
    assert (answer.status_code, answer.json()["code"]) == (400, "InvalidInput")
    assert (await applied.http.get("/v1/denials")).json()["items"] == []
