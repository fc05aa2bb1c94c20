"""Who may call what: the table, and the Unix sockets that say who calls."""

import os
import socket
import stat
import struct

import pytest
from aiohttp import web

from ipnext.components.authorisation import ANY, RULES, authorise, callers_of
from ipnext.components.identity import Component
from ipnext.components.sockets import bind_socket, caller_url, check_peer, split_url
from ipnext.errors import Forbidden
from ipnext.infra.agent.http_api import agent_app
from serving.openai.routes import ROOTS


def test_every_route_of_the_agent_is_in_the_table():
    routes = {route.resource.canonical for route in agent_app(None, region_name="eu").router.routes()}
    assert {path.split("/")[1] for path in routes} == {
        rule.steps[0] for rule in RULES if rule.listener is Component.AGENT
    }
    assert all(isinstance(route, web.AbstractRoute) for route in agent_app(None, region_name="eu").router.routes())


@pytest.mark.parametrize(
    ("listener", "path", "caller"),
    [
        (Component.AGENT, "/deployments", Component.CONTROL_PLANE),
        (Component.AGENT, "/routes/ranker", Component.CONTROL_PLANE),
        (Component.HOST, "/control/holds", Component.AGENT),
        (Component.HOST, "/frames", Component.ROUTER),
        (Component.ROUTER, "/control/drain", Component.AGENT),
        (Component.ROUTER, "/v2/models/ranker/infer?x=1", Component.GATEWAY),
        *((Component.ROUTER, f"/{root}?x=1", Component.GATEWAY) for root in sorted(ROOTS)),
    ],
)
def test_one_component_may_call_and_no_other(listener, path, caller):
    authorise(listener, caller, path)
    for other in set(Component) - {caller}:
        with pytest.raises(Forbidden, match=f"allowed: {caller}") as caught:
            authorise(listener, other, path)
        assert caught.value.policy == "components"


@pytest.mark.parametrize(
    "path", ["/", "", "/nothing", "/./control/state", "/%63ontrol/state", "/Control/state", "/?/control"]
)
@pytest.mark.parametrize("listener", [Component.AGENT, Component.ROUTER, Component.HOST, Component.GATEWAY])
def test_what_the_table_does_not_know_is_for_nobody(listener, path):
    assert not callers_of(listener, path)
    for caller in ANY:
        with pytest.raises(Forbidden, match="no component"):
            authorise(listener, caller, path)


def test_each_kind_of_caller_has_a_socket_of_its_own():
    assert caller_url("unix:///run/h1", Component.AGENT) == "unix:///run/h1/agent.sock"
    assert caller_url("unix:///run/h1", Component.ROUTER) == "unix:///run/h1/router.sock"
    assert caller_url("unix:///run/h1/e-1.sock", Component.ROUTER) == "unix:///run/h1/e-1.sock"
    assert caller_url("http://127.0.0.1:1", Component.ROUTER) == "http://127.0.0.1:1"
    assert split_url("unix:///run/h1/agent.sock/control/state") == ("/run/h1/agent.sock", "/control/state")
    assert split_url("unix:///run/h1/agent.sock") == ("/run/h1/agent.sock", "/")


def test_a_socket_is_of_its_user_alone_and_replaces_one_that_was_left(listeners, tmp_path):
    place = tmp_path / "h1"
    place.mkdir(mode=0o777)
    bind_socket(place, Component.AGENT).close()
    with bind_socket(place, Component.AGENT):
        assert stat.S_IMODE(place.stat().st_mode) == 0o700
        assert stat.S_IMODE((place / "agent.sock").stat().st_mode) == 0o600


class FakeConnection:
    """What the kernel says of the process at the other end."""

    def __init__(self, user):
        self._user = user

    def getsockopt(self, *_):
        return struct.pack("3i", 1, self._user, 1)


def test_another_user_of_the_machine_is_refused():
    check_peer(FakeConnection(os.geteuid()))
    check_peer(FakeConnection(0))
    with pytest.raises(Forbidden, match=f"user {os.geteuid() + 1} may not call"):
        check_peer(FakeConnection(os.geteuid() + 1))


def test_the_kernel_says_who_is_at_the_other_end(listeners):
    one, other = socket.socketpair()
    with one, other:
        check_peer(one)
