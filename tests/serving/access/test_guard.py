"""Who may ask what, decided by the list that a region has.

Keys, tokens, roles, limits, and what a refusal gives away.
"""

import errno
import json
import math
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import generate_latest
from structlog.testing import capture_logs

from ipnext.access.actions import ACTIONS
from ipnext.access.keys import draw_key
from ipnext.access.policy import Policies, Resource
from ipnext.errors import InvalidInput
from ipnext.model.access.predictions import (
    AccessList,
    AccessRevision,
    AccessSpec,
    AccessWithdrawal,
    CallerKey,
    ModelAccess,
)
from ipnext.model.access.rights import Grant, Principal, Role
from serving.access.access_list import AccessFollower, Caller
from serving.access.key_uses import EVERY_SECONDS
from serving.http.messages import Request, error_response
from serving.openai.errors import openai_error
from serving.routing.metrics import RouterMetrics
from tests.serving.access.world import CLOSED


def test_everybody_may_ask_an_open_model_also_with_a_credential_that_is_none(world):
    assert [world.status("free", given) for given in (None, "EMPTY", "ipnext_x", "a.b.c")] == [200] * 4


def test_a_model_that_needs_a_credential_refuses_nobody_with_a_challenge(world):
    refused = world.ask()
    assert refused.reason == "unauthenticated"
    for form in (error_response, openai_error):
        answer = form(refused.error)
        assert (answer.status, answer.headers["www-authenticate"]) == (401, 'Bearer realm="ipnext"')
    assert json.loads(openai_error(refused.error).body)["error"]["code"] == "invalid_api_key"


@pytest.mark.parametrize("role", list(Role))
@pytest.mark.parametrize(
    ("owner", "region", "status"), [("ads", "*", 200), ("*", "*", 200), ("search", "*", 404), ("*", "eu", 404)]
)
def test_every_role_over_the_owner_may_ask_and_no_other(world, role, owner, region, status):
    assert world.status("secret", world.key(role, owner=owner, region=region)) == status


def test_owners_that_a_model_is_shared_with_may_ask_and_others_may_not(world):
    world.accesses["secret"] = ("ads", AccessSpec(predictions="authenticated", callers=("search", "maps")))
    assert [world.status("secret", world.key(owner=owner)) for owner in ("search", "maps", "ads", "video")] == [
        *(200, 200, 200, 404)
    ]
    world.accesses["secret"] = ("ads", AccessSpec(predictions="authenticated", callers=("*",)))
    assert [
        world.status("secret", world.key(owner=owner, region=region)) for owner, region in (("video", "*"), ("*", "eu"))
    ] == [*(200, 404)]


def test_who_may_not_ask_is_told_the_same_of_a_foreign_model_and_of_none(world):
    key = world.key(Role.ADMIN, owner="ads")
    foreign, absent = world.ask("foreign", key), world.ask("absent", key)
    assert foreign.error.message.replace("foreign", "NAME") == absent.error.message.replace("absent", "NAME")
    assert type(foreign.error) is type(absent.error)
    for credential in (None, "EMPTY", draw_key().text):
        foreign, absent = world.ask("foreign", credential), world.ask("absent", credential)
        assert (foreign.error.http_status, foreign.error.message) == (401, absent.error.message)


def test_a_model_that_is_not_here_is_not_the_guards_matter_if_all_are_open(world):
    world.accesses, world.routed = {"free": ("ads", AccessSpec())}, {"free": "open"}
    world.publish()
    assert world.status("absent") == 200


def test_an_operators_policy_forbids_what_roles_permit_and_is_named(world):
    key = world.key()
    world.policies = """
        @id("closed-for-inventory")
        forbid (principal is Key, action == Action::"models.predict", resource is Model)
        when { resource.name == "secret" };
    """
    world.publish()
    refused = world.ask("secret", key)
    assert (refused.error.http_status, refused.error.policy, refused.reason) == (
        403,
        "closed-for-inventory",
        "forbidden",
    )


# keys


def forged(text):
    return text[:-1] + ("A" if text[-1] != "A" else "B")


def test_a_key_that_is_forged_unknown_or_misshapen_proves_nobody(world):
    key = world.key()
    identity = key.split(".")[0]
    bad = [
        forged(key),
        draw_key().text,
        identity,
        f"{identity}.",
        key + "=",
        key.upper(),
        "ipnext_" + "a" * 4000,
        f"{key} {key}",
    ]
    for credential in [*bad, f"{key}, Bearer {key}"]:
        refused = world.ask("secret", credential)
        assert refused.error.http_status == 401, credential
        assert credential not in refused.error.message
        assert key.split(".")[1] not in refused.error.message
    assert world.status("secret", key, scheme="bearer") == 200
    for scheme in ("Basic", "", "Token"):
        assert world.status("secret", key, scheme=scheme) == 401


def test_a_key_ends_at_its_time_by_the_routers_own_clock(world):
    key = world.key(expires_at=datetime.fromtimestamp(world.clock.now + 60, UTC))
    assert world.status("secret", key) == 200
    world.clock.now += 59
    assert world.status("secret", key) == 200
    world.clock.now += 1.5
    assert world.status("secret", key) == 401


def test_a_revoked_key_is_one_that_the_next_list_does_not_have(world):
    key = world.key()
    assert world.status("secret", key) == 200
    world.keys.clear()
    world.publish()
    assert world.status("secret", key) == 401


# closed if in doubt


def test_before_the_first_list_a_model_that_needs_a_credential_answers_nobody(world):
    key = world.key(Role.ADMIN, owner="*")
    world.callers = AccessFollower(None).callers
    refused = world.ask("secret", key)
    assert (refused.error.http_status, refused.reason) == (503, "no_access_list")
    assert world.status("secret") == 401
    assert world.status("free") == 200


def test_a_router_that_finds_no_list_answers_nobody_whatever_its_table_says(world, tmp_path):
    """Tables may be older than the list that is not there."""
    key = world.key(Role.ADMIN, owner="*")
    world.callers = AccessFollower(tmp_path / "access.json").callers
    for credential in (None, key):
        refused = [world.ask(model, credential) for model in ("free", "secret", "unknown")]
        assert [(one.error.http_status, one.reason) for one in refused] == [(503, "no_access_list")] * 3
    assert world.guard.visible(Request("GET", "/v1/models", {})).models == {}


def test_a_list_that_has_not_heard_of_a_model_leaves_it_as_closed_as_its_own_table(world):
    key = world.key()
    del world.accesses["secret"], world.accesses["free"]
    world.publish()
    assert (world.status("secret", key), world.status("secret"), world.status("free")) == (503, 401, 200)


def test_the_list_wins_over_the_table_in_both_directions(world):
    world.accesses |= {"secret": ("ads", AccessSpec()), "free": ("ads", CLOSED)}
    world.publish()
    assert (world.status("secret"), world.status("free")) == (200, 401)


def test_a_file_that_is_no_list_leaves_the_former_one_and_is_logged_without_its_content(tmp_path):
    file, drawn = tmp_path / "access.json", draw_key()
    follower = AccessFollower(file)
    follower.look()
    assert follower.callers is None
    key = CallerKey(id=drawn.id, name="app", digest=drawn.digest, grants=())
    content = AccessList(revision=4, keys=(key,)).model_dump_json()
    file.write_text(content)
    follower.look()
    assert follower.callers.revision.revision == 4
    with capture_logs() as logs:
        for number, bad in enumerate(
            (
                content[:-9],
                content.replace(drawn.id, "X"),
                AccessList(revision=5, policies="nonsense").model_dump_json(),
            )
        ):
            (tmp_path / str(number)).write_text(bad)
            (tmp_path / str(number)).replace(file)
            follower.look()
    assert follower.callers.revision.revision == 4
    assert len(logs) == 3
    assert drawn.digest not in str(logs)


def test_a_list_that_is_sent_is_in_force_until_a_later_one_is(tmp_path):
    file = tmp_path / "access.json"
    follower = AccessFollower(file)
    file.write_text(AccessList(revision=4, digest="four").model_dump_json())
    follower.look()
    follower.put(AccessList(revision=5, digest="five").model_dump_json().encode())
    assert follower.in_force == AccessRevision(revision=5, digest="five")
    follower.put(AccessList(revision=4).model_dump_json().encode())
    file.write_text(AccessList(revision=4, digest="the old one again").model_dump_json())
    follower.look()
    assert follower.in_force.revision == 5
    for bad in (b"{", AccessList(revision=6, policies="nonsense").model_dump_json().encode()):
        with pytest.raises(InvalidInput):
            follower.put(bad)
    assert follower.in_force.revision == 5


def withdrawal(below, *models):
    return AccessWithdrawal(below=below, open=models).model_dump_json().encode()


def test_only_an_older_list_is_withdrawn_and_until_another_one_comes(tmp_path):
    follower = AccessFollower(tmp_path / "none.json")
    follower.withdraw(withdrawal(4, "free"))
    assert (follower.in_force.revision, follower.callers.withdrawn) == (0, {"free"}), (
        "it starts, and can't read its file"
    )
    follower.put(AccessList(revision=5).model_dump_json().encode())
    follower.withdraw(withdrawal(5))
    assert follower.in_force.revision == 5
    with pytest.raises(InvalidInput, match="not a withdrawal"):
        follower.withdraw(b"{}")
    follower.withdraw(withdrawal(6))
    assert follower.in_force.revision == 0
    follower.put(AccessList(revision=6).model_dump_json().encode())
    assert follower.in_force.revision == 6


def test_a_withdrawn_list_does_not_come_back(tmp_path):
    follower = AccessFollower(tmp_path / "access.json")

    def put(revision):
        follower.put(AccessList(revision=revision).model_dump_json().encode())
        return follower.in_force.revision

    assert put(5) == 5
    follower.withdraw(withdrawal(7))
    assert [put(5), put(6), put(7)] == [0, 0, 7]


def test_a_file_that_could_not_be_read_for_a_moment_is_read_again(tmp_path, monkeypatch):
    file = tmp_path / "access.json"
    file.write_text(AccessList(revision=4).model_dump_json())
    follower = AccessFollower(file)

    def read(_):
        raise OSError(errno.EMFILE, "too many open files")

    with monkeypatch.context() as context:
        context.setattr(Path, "read_bytes", read)
        follower.look()
    assert follower.in_force.revision == 0
    follower.look()
    assert follower.in_force.revision == 4


def test_of_a_withdrawn_list_only_models_that_a_later_one_names_as_open_answer(world):
    world.routed |= {"late": "open"}
    world.accesses |= {"late": ("ads", AccessSpec()), "other": ("ads", AccessSpec())}
    key = world.key()
    assert [world.status("secret", key), world.status("late")] == [200, 200]
    world.callers.withdrawn = frozenset({"free"})
    for model in ("secret", "late", "other", "unknown"):
        assert (world.status(model, key), world.status(model)) == (503, 401), model
    assert world.status("free") == 200
    assert world.guard.visible(Request("GET", "/v1/models", {})).models.keys() == {"free"}
    world.callers.withdrawn = frozenset({"free", "late"})
    assert world.status("late") == 200, "the models that are open are named again"


def test_a_list_that_the_region_never_got_is_withdrawn_too(world):
    world.callers = AccessFollower(None).callers
    assert world.status("free") == 200
    world.callers.withdrawn = frozenset()
    assert world.status("free") == 401


def test_a_model_without_capacity_here_says_so_to_those_who_may_ask_it(world):
    key, absent = world.key(), {"x-ipnext-no-capacity": "1"}
    assert [world.status("secret", given, **absent) for given in (key, None, world.key(owner="video"))] == [
        503,
        401,
        404,
    ]
    assert world.status("free", **absent) == 200


def test_a_model_that_is_served_elsewhere_only_has_no_generation_here(world):
    key = world.key()
    del world.routed["secret"]
    world.publish()
    assert (world.status("secret", key), world.status("secret")) == (404, 401)


def test_refused_requests_are_counted_by_reason_and_not_for_a_name_that_a_client_made_up(world):
    metrics = RouterMetrics(region="eu")
    metrics.refusals.note("secret", "unauthenticated")
    metrics.refusals.note(None, "unknown_model")
    text = generate_latest(metrics.registry).decode()
    assert 'ipnext_router_refused_requests_total{model="secret",reason="unauthenticated",region="eu"} 1.0' in text
    assert 'model="unknown",reason="unknown_model"' in text
    assert metrics.traffic == ()


def test_a_list_of_models_leaves_out_what_is_not_for_who_asks(world):
    def seen(credential=None):
        headers = {} if credential is None else {"authorization": f"Bearer {credential}"}
        return set(world.guard.visible(Request("GET", "/v1/models", headers)).models)

    assert seen() == seen("EMPTY") == {"free"}
    assert seen(world.key()) == {"free", "secret"}
    assert seen(world.key(owner="*")) == {"free", "secret", "foreign"}
    old = world.key(expires_at=datetime.now(UTC) - timedelta(seconds=1))
    assert seen(old) == {"free"}


def test_a_key_that_proves_somebody_is_noted_as_used_to_the_minute_and_no_other_credential_is(world):
    text, began = world.key(), world.clock.now
    key_id = world.keys[0].id
    world.ask("free", text)
    world.ask("secret", draw_key().text)
    world.ask("secret", f"{text[:-1]}{'a' if text[-1] != 'a' else 'b'}")
    world.ask("secret", world.provider.token(sub="ann"))
    assert world.guard.uses.last == {}
    world.ask("secret", text)
    assert world.guard.uses.last == {key_id: began}
    world.clock.now = began + EVERY_SECONDS - 1
    world.ask("secret", text)
    assert world.guard.uses.last == {key_id: began}
    world.clock.now = began + EVERY_SECONDS
    world.ask("foreign", text)
    assert world.guard.uses.last == {key_id: began + EVERY_SECONDS}, "it proved somebody, who may not ask this model"


# what is not yours costs and tells no more than what is not there


@pytest.fixture
def evaluated(world, monkeypatch):
    """The models that policies were evaluated for."""
    found = []
    decide = Policies.decide

    def evaluate(policies, principal, action, resource):
        found.append(resource.name)
        return decide(policies, principal, action, resource)

    monkeypatch.setattr(Policies, "decide", evaluate)
    return found


@pytest.mark.parametrize(
    ("policies", "names"),
    [
        ("", []),
        ('@id("x") forbid (principal, action, resource == Model::"secret");', []),
        ('@id("x") permit (principal, action, resource == Model::"other");', ["foreign", "absent"]),
    ],
)
def test_policies_are_evaluated_for_models_of_others_as_for_none(world, evaluated, policies, names):
    world.policies = policies
    key = world.key()
    for model in ("foreign", "absent"):
        assert world.status(model, key) == 404
    assert evaluated == names


def test_a_list_of_models_goes_by_roles_and_evaluates_no_policy(world, evaluated):
    world.accesses |= {f"of-{number}": ("search", CLOSED) for number in range(50)}
    world.routed |= dict.fromkeys(world.accesses, "authenticated")
    for key, count in ((world.key(), 1), (world.key(owner="search"), 51), (world.key(Role.ADMIN, owner="*"), 52)):
        request = Request("GET", "/v1/models", {"authorization": f"Bearer {key}"})
        assert len(world.guard.visible(request).models.keys() - {"free"}) == count
    assert evaluated == []
    world.policies = '@id("frozen") forbid (principal, action, resource == Model::"secret");'
    key = world.key()
    request = Request("GET", "/v1/models", {"authorization": f"Bearer {key}"})
    assert world.guard.visible(request).models.keys() == {"free"}


BUILT_IN = Policies()
OWNERS = st.sampled_from(["ads", "search", "*"])
GRANTS = st.builds(Grant, role=st.sampled_from(Role), owner=OWNERS, region=st.sampled_from(["*", "eu"]))


@given(grants=st.lists(GRANTS, max_size=3), owner=st.sampled_from(["ads", "search", "maps"]), callers=st.sets(OWNERS))
def test_a_role_makes_a_model_callable_exactly_if_the_built_in_policies_do(grants, owner, callers):
    model = ModelAccess(model="m", owner=owner, access=CLOSED.model_copy(update={"callers": tuple(sorted(callers))}))
    caller = Caller(Principal(kind="key", id="k", name="n", grants=tuple(grants)), math.inf)
    resource = Resource("Model", "m", owner, model.access.callers)
    decision = BUILT_IN.decide(caller.principal, ACTIONS["models.predict"], resource)
    assert caller.knows(model) is decision.allowed
