"""The layer that cuts details of the machines: for whom, in which kinds of answers, and with entity tags of its own."""

import json
import threading

import httpx
import pytest

from ipnext.api.authorization import machine_details
from ipnext.api.authorization.machine_details import KEPT, LARGE, MachineDetails
from ipnext.model.access.rights import ANY, Grant, Principal, Role

LOG = "/srv/state/logs/ranker.log"


@pytest.fixture
def people(applied):
    """Role and owner -> headers of a key. The store has an event that names a file."""
    with applied.rooms.store.begin() as unit:
        unit.add_event("ranker", "Failed", f"see {LOG}", detail={"cause": {"place": {"log": LOG}}})

    def of(role, owner=ANY):
        return {"Authorization": f"Bearer {applied.rooms.add_key(f'{role}-{len(owner)}', role, owner=owner)}"}

    return of


async def events(world, headers):
    answer = await world.http.get("/v1/models/ranker/events", headers=headers)
    return next(event for event in answer.json()["items"] if event["kind"] == "Failed")


@pytest.mark.parametrize(
    ("role", "owner", "sees"),
    [
        (Role.VIEWER, ANY, False),
        (Role.PUBLISHER, ANY, False),
        (Role.ADMIN, "search", False),
        (Role.OPERATOR, ANY, True),
        (Role.ADMIN, ANY, True),
    ],
)
async def test_operators_and_administrators_of_all_owners_see_machines(applied, people, role, owner, sees):
    found = await events(applied, people(role, owner))
    shown = LOG if sees else "…/ranker.log"
    assert found["message"] == f"see {shown}"
    assert found["detail"]["cause"]["place"]["log"] == shown


def test_a_role_over_a_region_is_none_over_machines():
    grants = (Grant(role=Role.OPERATOR, region="eu"), Grant(role=Role.VIEWER))
    assert not Principal(kind="user", id="u", name="u", grants=grants).sees_machines


async def test_the_shortened_answer_has_an_entity_tag_of_its_own_and_is_not_sent_twice(applied, people):
    viewer, admin = people(Role.VIEWER), people(Role.ADMIN)
    tags = {}
    for name, headers in (("viewer", viewer), ("admin", admin)):
        first = await applied.http.get("/v1/overview", headers=headers)
        assert ("…/ranker.log" in first.text, LOG in first.text) == (name == "viewer", name == "admin")
        tags[name] = first.headers["etag"]
        again = await applied.http.get("/v1/overview", headers=headers | {"If-None-Match": tags[name]})
        assert (again.status_code, again.content, again.headers["etag"]) == (304, b"", tags[name])
    assert tags["viewer"] != tags["admin"]


async def answered(body, kind, *, required=True, pieces=1):
    """What a client gets of an application that answers this body to nobody in particular."""

    async def app(_scope, _receive, send):
        headers = [(b"content-type", kind.encode()), (b"content-length", str(len(body)).encode())]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        size = -(-len(body) // pieces)
        for number in range(pieces):
            piece = body[number * size : (number + 1) * size]
            await send({"type": "http.response.body", "body": piece, "more_body": number + 1 < pieces})

    transport = httpx.ASGITransport(app=MachineDetails(app, required=required))
    async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as http:
        answer = await http.get("/x")
    if "content-length" in answer.headers and kind != "text/event-stream":
        assert int(answer.headers["content-length"]) == len(answer.content)
    return answer.content


@pytest.mark.parametrize("pieces", [1, 3])
@pytest.mark.parametrize("many", [1, LARGE // 10])
async def test_json_and_text_are_cut_whole_in_however_many_pieces_they_come(pieces, many):
    body = json.dumps({"items": [{"message": LOG, "pid": 7}] * many}).encode()
    found = json.loads(await answered(body, "application/json", pieces=pieces))
    assert found == {"items": [{"message": "…/ranker.log", "pid": None}] * many}
    assert await answered(LOG.encode(), "text/plain; charset=utf-8", pieces=pieces) == "…/ranker.log".encode()


async def test_answers_that_are_no_short_ones_are_cut_outside_of_the_event_loop(monkeypatch):
    """To find paths in a text is expensive, and publishers choose the texts."""
    found, cut = [], machine_details.shorten
    monkeypatch.setattr(machine_details, "shorten", lambda value: (found.append(threading.get_ident()), cut(value))[1])
    for many in (1, LARGE // len(LOG)):
        body = json.dumps({"messages": [LOG] * many, "many": many}).encode()
        await answered(body, "application/json")
    short, longer = found
    assert short == threading.get_ident()
    assert longer != threading.get_ident()


async def test_messages_of_a_stream_are_cut_one_by_one():
    event = f"event: event\ndata: {json.dumps({'message': f'a{chr(10)}{LOG}'})}\nid: 7\n\n"
    found = (await answered(event.encode(), "text/event-stream")).decode()
    assert json.loads(found.split("\n")[1].removeprefix("data: ")) == {"message": "a\n…/ranker.log"}
    assert found.replace(found.split("\n")[1], "") == event.replace(event.split("\n")[1], "")


async def test_what_has_no_details_and_other_kinds_of_answers_pass_byte_by_byte():
    for body, kind in (
        (b'{"a":  [1, 2.50, null]}', "application/json"),
        (LOG.encode(), "text/html"),
        (b"{", "application/json"),
    ):
        assert await answered(body, kind) == body


async def test_without_authentication_everybody_sees_everything():
    assert await answered(LOG.encode(), "text/plain", required=False) == LOG.encode()


async def test_no_more_answers_are_remembered_than_a_few():
    from ipnext.api.authorization.machine_details import _json  # noqa: PLC0415

    for number in range(2 * KEPT):
        await answered(f'{{"number": {number}}}'.encode(), "application/json")
    assert _json.cache_info().currsize == KEPT
