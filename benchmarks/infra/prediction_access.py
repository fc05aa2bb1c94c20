"""What a credential costs a prediction.

Through Envoy, router and host, with an API key and with a token, over the open model.

    python -m benchmarks.infra.prediction_access  (--rounds 20 --requests 400 --json out.json --docs docs/benchmarks.md)

One agent with Envoy, one router and two models of one snapshot with a torch host each; one client with one connection
to each model. One model is open (the baseline, asked without a header and with one that is ignored), the other one is
asked with a key and with a token (RS256, verified once and remembered). The four ways follow each other request by
request, in a new order each time, so that whatever else the machine does is the same for all. Two turns, with the
roles of the models exchanged, are one round, and its ratio is the geometric mean of theirs: a model whose host is
slower than the other one's counts on both sides. After a new access list, the first requests are not counted. Then the
router's check alone, of a key, of a token that it knows and of one that is new.
"""

import argparse
import http.client
import json
import math
import random
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

from joserfc import jwk, jwt
from rich.console import Console
from rich.table import Table

from benchmarks.infra.router_end import BODY, Room
from ipnext.access.keys import draw_key
from ipnext.model.access.predictions import (
    AccessList,
    AccessSpec,
    CallerKey,
    CallerRole,
    ModelAccess,
    PredictionLimits,
    RateLimit,
    TokenIssuer,
)
from ipnext.model.access.rights import Grant, Role
from ipnext.model.deployment.router_table import RoutedModel, RouterTable
from serving.access.access_list import Callers
from serving.access.guard import AccessGuard
from serving.http.messages import Request
from serving.routing.table import compile_routes

BEGIN, END = "<!-- prediction access -->", "<!-- end prediction access -->"
MODELS = ("double", "twice")
ISSUER, AUDIENCE = "https://login.example.com", "ipnext"
WARM_REQUESTS: Final = 50
CHECKS: Final = 2000
KEYS_BESIDE: Final = 1000
"""Further keys of the list, as a platform has them."""


class Credentials:
    """A key and a token, and the lists that let them in."""

    def __init__(self) -> None:
        self._signing = jwk.RSAKey.generate_key(2048, {"kid": "one"})
        self._key = draw_key()
        self._revision = 0
        self.headers: Mapping[str, Mapping[str, str]] = {
            "open": {},
            "open, with a key": {"authorization": f"Bearer {self._key.text}"},
            "key": {"authorization": f"Bearer {self._key.text}"},
            "token": {"authorization": f"Bearer {self.token()}"},
        }

    def token(self) -> str:
        """Make a new token of a person in one group."""
        now = int(time.time())
        claims = {"iss": ISSUER, "aud": AUDIENCE, "sub": "1", "iat": now, "exp": now + 3600, "jti": draw_key().id}
        claims |= {"preferred_username": "ann", "groups": ["search"]}
        return jwt.encode({"alg": "RS256", "kid": "one"}, claims, self._signing)

    def list(self, open_model: str) -> AccessList:
        """Make the next list: one model open, the other one closed, with limits that no client reaches."""
        self._revision += 1
        much = RateLimit(requests_per_second=1_000_000)
        closed = AccessSpec(predictions="authenticated", limits=PredictionLimits(per_key=much, per_owner=much))
        grants = (Grant(role=Role.CALLER, owner="ads"),)
        others = (draw_key() for _ in range(KEYS_BESIDE))
        return AccessList(
            revision=self._revision,
            models=tuple(
                ModelAccess(model=model, owner="ads", access=AccessSpec() if model == open_model else closed)
                for model in MODELS
            ),
            keys=tuple(
                CallerKey(id=key.id, name="app", digest=key.digest, grants=grants) for key in (self._key, *others)
            ),
            roles=(CallerRole(subject="group:search", grant=grants[0]),),
            tokens=TokenIssuer(
                issuer=ISSUER,
                audience=AUDIENCE,
                keys=(self._signing.as_dict(private=False),),
                valid_until=time.time() + 3600,
            ),
        )


class Asker:
    """One client on one connection to one model."""

    def __init__(self, url: str, model: str) -> None:
        parts = urlsplit(url)
        self._path = parts.path.replace(f"/{MODELS[0]}/", f"/{model}/")
        self._body = json.dumps(BODY).encode()
        self._connection = http.client.HTTPConnection(parts.hostname or "", parts.port)

    def ask(self, headers: Mapping[str, str]) -> tuple[int, float]:
        """Status, and seconds."""
        began = time.perf_counter()
        self._connection.request("POST", self._path, self._body, {"content-type": "application/json", **headers})
        answer = self._connection.getresponse()
        answer.read()
        return answer.status, time.perf_counter() - began


Medians = dict[str, float]
"""Kind of credential -> median of a turn, seconds."""


def turn(askers: Mapping[str, Asker], headers: Mapping[str, Mapping[str, str]], requests: int) -> Medians:
    """Ask in all ways by turns. `askers`: kind of credential -> who asks its model."""
    seen: dict[str, list[float]] = {kind: [] for kind in headers}
    kinds = list(headers)
    for number in range(WARM_REQUESTS + requests):
        random.shuffle(kinds)
        for kind in kinds:
            status, seconds = askers[kind].ask(headers[kind])
            if status != 200:
                msg = f"an answer {status}: the turn counts for nothing"
                raise RuntimeError(msg)
            if number >= WARM_REQUESTS:
                seen[kind].append(seconds)
    return {kind: statistics.median(times) for kind, times in seen.items()}


def turns(given: argparse.Namespace, place: Path) -> list[tuple[Medians, Medians]]:
    """Return the rounds: the medians of two turns each, in which the models have exchanged their roles."""
    room, credentials = Room(place / "room", {}), Credentials()
    found: list[Medians] = []
    try:
        room.serve(*MODELS)
        clients = {model: Asker(room.url, model) for model in MODELS}
        for number in range(2 * given.rounds):
            free, closed = MODELS if number % 2 else reversed(MODELS)
            room.infra.put_access("here", credentials.list(free))
            while clients[free].ask({})[0] != 200 or clients[closed].ask({})[0] != 401:
                time.sleep(0.005)
            askers = {kind: clients[free if kind.startswith("open") else closed] for kind in credentials.headers}
            found.append(turn(askers, credentials.headers, given.requests))
    finally:
        room.close()
    return list(zip(found[::2], found[1::2], strict=True))


def checks() -> dict[str, float]:
    """Measure the router's check alone, in microseconds: the median of many."""
    credentials = Credentials()
    callers = Callers(credentials.list(MODELS[1]))
    routed = RoutedModel(model=MODELS[0], served=(), access="authenticated")
    routes = compile_routes(RouterTable(revision=1, region="here", models=(routed,)))
    guard = AccessGuard(lambda: routes, lambda: callers)
    new = iter([{"authorization": f"Bearer {credentials.token()}"} for _ in range(CHECKS // 10)])
    return {
        "a key": _median(lambda: credentials.headers["key"], guard, CHECKS),
        "a token that it knows": _median(lambda: credentials.headers["token"], guard, CHECKS),
        "a token that is new": _median(lambda: next(new), guard, CHECKS // 10),
    }


def _median(headers: Callable[[], Mapping[str, str]], guard: AccessGuard, count: int) -> float:
    seen = []
    for _ in range(count):
        request = Request("POST", "/v2/models/double/infer", headers())
        began = time.perf_counter()
        guard.admit(request, MODELS[0])
        seen.append(time.perf_counter() - began)
    return statistics.median(seen) * 1e6


def rows(found: Sequence[tuple[Medians, Medians]]) -> list[list[str]]:
    """Kind, median of its medians in milliseconds, median and range of the ratios of its rounds to the open model."""
    lines = []
    for kind in found[0][0]:
        ratios = sorted(math.sqrt(math.prod(one[kind] / one["open"] for one in pair)) for pair in found)
        median = statistics.median(one[kind] for pair in found for one in pair)
        spread = f"{ratios[0]:.2f} to {ratios[-1]:.2f}"
        lines.append([kind, f"{median * 1e3:.3f}", f"{statistics.median(ratios):.3f}", spread])
    return lines


def main(arguments: Sequence[str] | None = None) -> None:
    """Print a table, and write JSON or the documentation if requested."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--requests", type=int, default=400)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--docs", type=Path, help="a page whose table between the marks is written again")
    given = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory(prefix="ipnext-bench-") as place:
        found = turns(given, Path(place))
    alone = checks()
    header = ["asked", "p50, ms", "ratio to open", "ratios of the rounds"]
    table = Table(*header)
    for line in rows(found):
        table.add_row(*line)
    Console().print(table)
    text = ", ".join(f"{name} {micros:.1f} µs" for name, micros in alone.items())
    Console().print(f"The router's check alone: {text}.")
    if given.json:
        given.json.write_text(json.dumps({"turns": found, "checks": alone}, indent=1))
    if given.docs:
        lines = [header, ["---"] * len(header), *rows(found)]
        content = "\n".join("| " + " | ".join(line) + " |" for line in lines)
        before, _, rest = given.docs.read_text().partition(BEGIN)
        given.docs.write_text(
            f"{before}{BEGIN}\n{content}\n\nThe router's check alone: {text}.\n{END}{rest.partition(END)[2]}"
        )


if __name__ == "__main__":
    main()
