"""No endpoint of a running platform tells a viewer or publisher where on which machine it runs.

Paths, process ids, inner ports.
"""

import functools
import json
import re
import signal
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import httpx
import pytest

import ipnext
from ipnext.api.authorization.authentication import is_public
from ipnext.login.credentials import read_key
from ipnext.model.access.rights import KeyRequest, Role
from tests.waiting import until

pytestmark = pytest.mark.e2e

OUTER_PORTS = ("api", "temporal_ui")
"""Of ports.json; gateways for clients begin so, too: `gateway REGION`."""
UNKNOWN = "a" * 16
QUERIES = {"/v1/proof": {"key": UNKNOWN, "nonce": "n" * 32}, "/v1/freezes/now": {"model": "pair"}}
NUMBERS = re.compile(r"\d{4}-\d\d-\d\dT[\d:.]+|\b[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}\b|\b[0-9a-f]{16,}\b")
"""Times, UUIDs and digests: their digits may be those of a process's id by chance."""
SOURCES = {".py", ".html", ".js", ".css"}
LEAST_PID = 1000
"""Smaller ones occur in every text."""


@pytest.fixture(scope="module")
def lived_in(platform: Any) -> Any:
    """A platform of which one host was killed, and said so."""
    host = platform.found("serving.host", "us-east")[0]
    host.send_signal(signal.SIGKILL)

    def messages() -> list[Any]:
        replicas = platform.client.model("pair").status.replicas
        return [replica for replica in replicas if replica.message and "SIGKILL" in replica.message]

    until(messages, why=lambda: platform.client.model("pair").status.replicas)
    return platform


@pytest.fixture(scope="module")
def keys(lived_in: Any) -> Mapping[str, str]:
    """Who asks -> the key."""
    asking = {
        "viewer": (Role.VIEWER, "*"),
        "publisher": (Role.PUBLISHER, "*"),
        "operator-of-tests": (Role.OPERATOR, "tests"),
        "operator": (Role.OPERATOR, "*"),
    }
    made = {
        name: lived_in.client.create_key(KeyRequest(name=f"details-{name}", role=role, owner=owner)).key
        for name, (role, owner) in asking.items()
    }
    return made | {"admin": str(read_key(Path(lived_in.endpoints["admin_key_file"])))}


def paths(platform: Any) -> list[str]:
    """Every GET endpoint, with what there is for each parameter of its path."""
    client = platform.client
    [plan] = client._http.get("/v1/plans?limit=1").json()["items"]
    [change, *_] = client.changes("pair")
    known = {
        "name": "pair", "part": "first", "source": UNKNOWN, "number": "1", "generation": "1", "region": "us-east",
        "owner": "tests",
        "change_id": change.id, "plan_id": plan["id"], "replan_id": UNKNOWN, "key_id": UNKNOWN, "binding_id": UNKNOWN,
        "digest": "0" * 64,
    }  # fmt: skip
    schema = client._http.get("/openapi.json").json()
    found = [path for path, operations in schema["paths"].items() if "get" in operations]
    return [re.sub(r"\{(\w+)\}", lambda one: known[one[1]], path) for path in sorted(found)]


def answer(platform: Any, path: str, key: str | None) -> httpx.Response:
    """The whole answer; of the stream of events those that come first."""
    headers = {"last-event-id": "0"} | ({"authorization": f"Bearer {key}"} if key else {})
    url = platform.endpoints["api"] + path
    with httpx.stream("GET", url, params=QUERIES.get(path), headers=headers, timeout=60, trust_env=False) as found:
        if not path.endswith("/stream") or found.status_code != 200:
            found.read()
            return found
        text = ""
        for piece in found.iter_text():
            text += piece
            if text.count("\n\n") > 3:
                break
        return httpx.Response(
            200, text=text.rpartition("\n\n")[0], headers={"content-type": found.headers["content-type"]}
        )


def texts(value: Any) -> Iterator[str]:
    """Every text of a JSON value, and the process ids that stand in members of that name."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, list):
        for each in value:
            yield from texts(each)
    elif isinstance(value, dict):
        for name, each in value.items():
            yield name
            yield from texts(f"pid {each}" if name == "pid" and each is not None else each)


def event_texts(stream: str) -> Iterator[str]:
    """The names of events and the texts of their data: their numbers and the pause before a retry name no process."""
    for line in stream.splitlines():
        name, _, value = line.partition(": ")
        if name == "data":
            yield from texts(json.loads(value))
        elif name not in {"id", "retry"}:
            yield line


def metric_texts(exposition: str) -> Iterator[str]:
    """Names, labels and help: a value is a number of something else than a process."""
    for line in exposition.splitlines():
        yield line if line.startswith("#") else line.rpartition(" ")[0]


READERS: Mapping[str, Callable[[httpx.Response], Iterator[str]]] = {
    "application/json": lambda given: texts(given.json()),
    "text/event-stream": lambda given: event_texts(given.text),
    "text/plain": lambda given: metric_texts(given.text),
}
"""By the type of an answer: all that it says of anything but numbers of its own."""


def said(given: httpx.Response) -> str:
    read = READERS.get(given.headers.get("content-type", "").partition(";")[0], lambda other: iter([other.text]))
    return NUMBERS.sub("", "\n".join(read(given)))


def told(platform: Any, key: str | None) -> Mapping[str, str]:
    """Path -> all texts of its answer."""
    found = {}
    for path in paths(platform):
        given = answer(platform, path, key)
        assert given.status_code in {200, 401, 403, 404}, (path, given.text)
        found[path] = said(given)
    return found


@functools.cache
def constants() -> frozenset[int]:
    """The numbers in the sources of the platform, which texts may name: none of them tells of a process."""
    files = (file for file in Path(ipnext.__file__).parent.rglob("*") if file.suffix in SOURCES)
    numbers = (re.findall(r"\b\d{4,}\b", file.read_text().replace("_", "")) for file in files)
    return frozenset(int(number) for found in numbers for number in found)


def details(platform: Any) -> Mapping[str, re.Pattern[str]]:
    """What must not be told."""
    ports = json.loads((platform.state / "ports.json").read_text())
    outer = {port for name, port in ports.items() if name in OUTER_PORTS or re.fullmatch(r"gateway [\w-]+", name)}
    inner = {port for port in ports.values() if port not in outer}
    for book in platform.state.glob("regions/*/ports.json"):
        inner |= set(json.loads(book.read_text()).values()) - outer
    pids = {process.pid for process in platform.family()} | {platform.process.pid}
    telling = sorted(pid for pid in pids - constants() if pid >= LEAST_PID)
    return {
        "state directory": re.compile(re.escape(str(platform.state))),
        "home directory": re.compile(rf"{re.escape(str(Path.home()))}\b"),
        "inner port": re.compile(rf":(?:{'|'.join(map(str, sorted(inner)))})\b"),
        "process id": re.compile(rf"\b(?:{'|'.join(map(str, telling)) or '(?!)'})\b"),
        "any process id": re.compile(r"\bpid\W{1,3}\d"),
        "any path": re.compile(r"(?<![\w/.~-])/(?:tmp|home|root|var|usr|opt|work|etc|run|proc)/"),
    }


def found_in(found: Mapping[str, str], platform: Any) -> list[str]:
    patterns = details(platform)
    return [
        f"{path}: {what}: {text[max(0, match.start() - 60) : match.end() + 60]!r}"
        for path, text in found.items()
        for what, pattern in patterns.items()
        if (match := pattern.search(text))
    ]


@pytest.mark.parametrize("who", ["viewer", "publisher", "operator-of-tests", None])
def test_nobody_but_operators_of_all_owners_is_told_of_the_machine(
    lived_in: Any, keys: Mapping[str, str], who: str | None
) -> None:
    found = told(lived_in, keys[who] if who else None)
    assert found_in(found, lived_in) == []
    assert ("pair" in found["/v1/models"]) is (who is not None)
    if who is None:
        public = set(filter(is_public, found)) - {"/v1/tickets/current"}  # it asks for a ticket
        assert {path for path in found if "Unauthenticated" not in found[path]} == public


@pytest.mark.parametrize("who", ["operator", "admin"])
def test_operators_of_all_owners_are(lived_in: Any, keys: Mapping[str, str], who: str) -> None:
    found = "\n".join(found_in(told(lived_in, keys[who]), lived_in))
    for what in ("state directory", "process id", "any process id", "any path"):
        assert f": {what}: " in found, what


@pytest.mark.parametrize("who", ["viewer", "publisher"])
def test_errors_and_answers_of_publishes_tell_nothing_either(lived_in: Any, keys: Mapping[str, str], who: str) -> None:
    headers = {"authorization": f"Bearer {keys[who]}"}
    api = lived_in.endpoints["api"]
    asked = {
        "/v1/models/pair/publish": {"parts": {"first": {"uri": f"file://{lived_in.state}/secret"}}},
        "/v1/models/pair/rollback": {"generation": 77},
    }
    given = {
        path: httpx.post(api + path, json=body, headers=headers, timeout=60, trust_env=False)
        for path, body in asked.items()
    }
    assert {answer.status_code for answer in given.values()} <= {400, 403, 404, 409}
    assert found_in({path: said(answer) for path, answer in given.items()}, lived_in) == []


def test_what_people_declared_is_shown_to_them_as_they_wrote_it(lived_in: Any, keys: Mapping[str, str]) -> None:
    path = "/v1/models/pair"
    seen = [answer(lived_in, path, keys[who]).json()["manifest"] for who in ("viewer", "admin")]
    assert seen[0] == seen[1]
