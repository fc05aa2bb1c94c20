"""A router's table and access list, and the guard over both."""

import time

from ipnext.access.keys import draw_key
from ipnext.model.access.predictions import (
    AccessList,
    AccessSpec,
    CallerKey,
    ModelAccess,
    TokenIssuer,
)
from ipnext.model.access.rights import Grant, Role
from ipnext.model.deployment.router_table import RoutedModel, RouterTable
from serving.access.access_list import Callers
from serving.access.guard import AccessGuard, Refusal
from serving.access.key_uses import KeyUses
from serving.access.rate_limits import RateLimiter
from serving.http.messages import Request
from serving.routing.table import compile_routes
from tests.identity_provider import AUDIENCE, Signer, rsa_key

KEY = rsa_key("first")
OTHER = rsa_key("other")
CLOSED = AccessSpec(predictions="authenticated")


class Clock:
    def __init__(self):
        self.now = time.time()

    def __call__(self):
        return self.now


class World:
    """A router's table and list, and the guard over both."""

    def __init__(self):
        self.clock = Clock()
        self.provider = Signer(KEY)
        self.accesses = {"secret": ("ads", CLOSED), "free": ("ads", AccessSpec())}
        self.routed = {"secret": "authenticated", "free": "open", "foreign": "open"}
        self.accesses["foreign"] = ("search", CLOSED)
        self.keys, self.roles, self.policies = [], [], ""
        self.tokens = TokenIssuer(
            issuer=self.provider.issuer,
            audience=AUDIENCE,
            keys=(KEY.as_dict(private=False),),
            valid_until=self.clock.now + 3600,
        )
        self.callers = None
        self.guard = AccessGuard(
            lambda: self.routes,
            lambda: self.callers,
            limiter=RateLimiter(clock=self.clock),
            uses=KeyUses(clock=self.clock),
        )
        self.publish()

    def publish(self):
        models = tuple(RoutedModel(model=m, served=(), access=a) for m, a in self.routed.items())
        self.routes = compile_routes(RouterTable(revision=1, region="eu", models=models))
        listed = tuple(ModelAccess(model=m, owner=o, access=a) for m, (o, a) in self.accesses.items())
        given = {"models": listed, "keys": self.keys, "roles": self.roles, "tokens": self.tokens}
        self.callers = Callers(AccessList(revision=1, **given, policies=self.policies), clock=self.clock)

    def key(self, role=Role.CALLER, *, owner="ads", region="*", **more):
        drawn = draw_key()
        grants = (Grant(role=role, owner=owner, region=region),)
        self.keys.append(CallerKey(id=drawn.id, name="app", digest=drawn.digest, grants=grants, **more))
        self.publish()
        return drawn.text

    def ask(self, model="secret", credential=None, *, scheme="Bearer", **headers):
        """None, or the refusal."""
        given = {} if credential is None else {"authorization": f"{scheme} {credential}"}
        try:
            self.guard.admit(Request("POST", f"/v2/models/{model}/infer", given | headers), model)
        except Refusal as refused:
            return refused
        return None

    def status(self, *asked, **more):
        refused = self.ask(*asked, **more)
        return 200 if refused is None else refused.error.http_status
