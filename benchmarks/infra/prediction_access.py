"""What a credential costs a prediction.

Through Envoy, router and host, with an API key and with a token, over the open model.

    python -m benchmarks.infra.prediction_access  (--rounds 20 --requests 400 --json out.json --docs docs/benchmarks.md)

One agent with Envoy, one router and one torch host, one client with one connection. In turns of `--requests` each the
same model is open (the baseline, without a header and with one that is ignored), asked with a key, and asked with a
token (RS256, verified once and remembered); a new access list lies between two turns, and the first requests after it
are not counted. Then the router's check alone, of a key, of a token that it knows and of one that is new.
"""

import argparse
import http.client
import json
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
MODEL, ISSUER, AUDIENCE = "double", "https://login.example.com", "ipnext"
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

    def list(self, *, is_open: bool) -> AccessList:
        """Make the next list: the model open, or closed with limits that no client reaches."""
        self._revision += 1
        much = RateLimit(requests_per_second=1_000_000)
        closed = AccessSpec(predictions="authenticated", limits=PredictionLimits(per_key=much, per_owner=much))
        grants = (Grant(role=Role.CALLER, owner="ads"),)
        others = (draw_key() for _ in range(KEYS_BESIDE))
        return AccessList(
            revision=self._revision,
            models=(ModelAccess(model=MODEL, owner="ads", access=AccessSpec() if is_open else closed),),
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
    """One client on one connection."""

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        self._path, self._body = parts.path, json.dumps(BODY).encode()
        self._connection = http.client.HTTPConnection(parts.hostname or "", parts.port)

    def ask(self, headers: Mapping[str, str]) -> tuple[int, float]:
        """Status, and seconds."""
        began = time.perf_counter()
        self._connection.request("POST", self._path, self._body, {"content-type": "application/json", **headers})
        answer = self._connection.getresponse()
        answer.read()
        return answer.status, time.perf_counter() - began

    def turn(self, headers: Mapping[str, str], requests: int) -> float:
        """Median of a turn, seconds."""
        for _ in range(WARM_REQUESTS):
            self.ask(headers)
        found = [self.ask(headers) for _ in range(requests)]
        if {status for status, _ in found} != {200}:
            msg = f"answers {sorted({status for status, _ in found})}: the turn counts for nothing"
            raise RuntimeError(msg)
        return statistics.median(seconds for _, seconds in found)


def turns(given: argparse.Namespace, place: Path) -> dict[str, list[float]]:
    """Kind of credential -> the median of each of its turns, seconds."""
    room, credentials = Room(place / "room", {}), Credentials()
    found: dict[str, list[float]] = {kind: [] for kind in credentials.headers}
    try:
        room.serve()
        asker = Asker(room.url)
        for number in range(given.rounds):
            kinds = list(credentials.headers)
            for kind in kinds if number % 2 else reversed(kinds):
                room.infra.put_access("here", credentials.list(is_open=kind.startswith("open")))
                expected = 200 if kind.startswith("open") else 401
                while asker.ask({})[0] != expected:
                    time.sleep(0.005)
                found[kind].append(asker.turn(credentials.headers[kind], given.requests))
    finally:
        room.close()
    return found


def checks() -> dict[str, float]:
    """Measure the router's check alone, in microseconds: the median of many."""
    credentials = Credentials()
    callers = Callers(credentials.list(is_open=False))
    routed = RoutedModel(model=MODEL, served=(), access="authenticated")
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
        guard.admit(request, MODEL)
        seen.append(time.perf_counter() - began)
    return statistics.median(seen) * 1e6


def rows(found: Mapping[str, Sequence[float]]) -> list[list[str]]:
    """Kind, median of its medians in milliseconds, median and most of its ratios to the open turn of the same round."""
    lines = []
    for kind, medians in found.items():
        ratios = [one / base for one, base in zip(medians, found["open"], strict=True)]
        spread = f"{min(ratios):.2f} to {max(ratios):.2f}"
        lines.append([kind, f"{statistics.median(medians) * 1e3:.3f}", f"{statistics.median(ratios):.3f}", spread])
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
