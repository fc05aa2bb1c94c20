"""Answers that Envoy makes itself have a text: real Envoy, raw requests."""

import http.client
import json
import socket
import subprocess
from contextlib import ExitStack, contextmanager

import pytest

from ipnext.infra.envoy import config as envoy
from ipnext.infra.envoy import local_replies
from ipnext.infra.envoy.bootstrap import GatewayLimits, bootstrap
from ipnext.infra.gateway.process import envoy_binary
from ipnext.infra.process.ports import PortBook
from tests.waiting import PATIENCE_SECONDS, until

V2, OPENAI = "/v2/models/m/infer", "/v1/models"
HEADER_SECONDS = 0.25
MALFORMED = "http1.codec_error"


def request(*headers, line="GET {path} HTTP/1.1", host="localhost"):
    """Return a raw request without a path yet."""
    named = [f"host: {host}"] if host else []
    return "\r\n".join([line, *named, *headers, "", ""])


REFUSED = [
    ("missing_host_header", 400, request(host="")),
    ("http.invalid_authority", 400, request(host="a b")),
    ("upgrade_failed", 403, request("connection: upgrade", "upgrade: websocket")),
    ("route_not_found", 404, request(line="CONNECT localhost:80 HTTP/1.1", host="localhost:80")),
    ("absolute_path_rejected", 404, request(line="OPTIONS * HTTP/1.1")),
    ("path_normalization_failed", 400, request(line="GET {path}/%00 HTTP/1.1")),
    ("path_normalization_failed", 400, request(line="GET {path}#fragment HTTP/1.1")),
    ("http1.invalid_url", 400, request(line="GET http:// HTTP/1.1")),
    ("http1.invalid_characters", 400, request("x-a: \x01")),
    (MALFORMED, 400, "neither a request nor a response\r\n\r\n"),
    (MALFORMED, 400, request("x a: 1")),
    (MALFORMED, 400, request("content-length: few", line="POST {path} HTTP/1.1")),
    (MALFORMED, 400, "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"),
    ("http1.content_length_and_chunked_not_allowed", 400, request("content-length: 1", "transfer-encoding: chunked")),
    ("http1.invalid_transfer_encoding", 501, request("transfer-encoding: gzip")),
    ("http1.headers_too_large", 431, request(f"x-a: {'a' * local_replies.MOST_HEADERS_KIB * 1024}")),
    ("http1.too_many_headers", 431, request(*(f"x-{n}: 1" for n in range(local_replies.MOST_HEADERS)))),
    ("low_version", 426, request(line="GET {path} HTTP/1.0")),
]
"""Envoy's details, the status, and a request."""
ELSEWHERE = {"request_header_timeout", "overload"}
"""Details of tests of their own."""
WITH_PATH = {"missing_host_header", "upgrade_failed", "path_normalization_failed"}
"""Details of answers to requests whose path Envoy has read: those of OpenAI's have their form."""


@contextmanager
def running_envoy(directory, **limits):
    """Yield the port of a gateway without models."""
    port = PortBook(directory / "ports.json").port("gateway")
    gateway = envoy.Gateway(
        region="eu", router_url="http://127.0.0.1:1", peers={}, tables={}, request_seconds=PATIENCE_SECONDS
    )
    files = {name: directory / f"{name}.json" for name in ("routes", "clusters", "bootstrap")}
    files["routes"].write_bytes(envoy.as_json(envoy.discovery(1, envoy.routes(gateway))))
    files["clusters"].write_bytes(envoy.as_json(envoy.discovery(1, envoy.clusters(gateway))))
    static = bootstrap(
        port,
        str(directory / "admin.sock"),
        region="eu",
        routes_file=str(files["routes"]),
        clusters_file=str(files["clusters"]),
        limits=GatewayLimits(**limits),
    )
    files["bootstrap"].write_bytes(envoy.as_json(static))
    command = [str(envoy_binary()), "--config-path", str(files["bootstrap"])]
    process = subprocess.Popen([*command, "--disable-hot-restart", "--concurrency", "1", "--log-level", "error"])
    try:
        until(lambda: listens(port), why=lambda: "Envoy listens")
        yield port
    finally:
        process.kill()
        process.wait()


def listens(port):
    try:
        socket.create_connection(("127.0.0.1", port), timeout=PATIENCE_SECONDS).close()
    except OSError:
        return False
    return True


def ask(port, text):
    """Return the status and the JSON of the answer."""
    with socket.create_connection(("127.0.0.1", port), timeout=PATIENCE_SECONDS) as line:
        line.sendall(text.encode())
        answer = http.client.HTTPResponse(line)
        answer.begin()
        assert answer.getheader("content-type") == "application/json"
        return answer.status, json.loads(answer.read())


@pytest.fixture(scope="module")
def gateway(tmp_path_factory, subprocesses):
    with running_envoy(tmp_path_factory.mktemp("replies")) as port:
        yield port


@pytest.fixture(scope="module")
def wordless(tmp_path_factory, subprocesses):
    """A gateway whose texts know no details."""
    with ExitStack() as stack:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(local_replies, "known_replies", lambda _: {})
            port = stack.enter_context(running_envoy(tmp_path_factory.mktemp("wordless")))
        yield port


def text_of(details, header_seconds=20.0):
    return local_replies.known_replies(header_seconds)[details].text.replace("%%", "%")


def test_each_answer_with_a_text_is_provoked():
    assert {details for details, *_ in REFUSED} | ELSEWHERE == local_replies.known_replies(1.0).keys()


def test_each_answer_is_known_by_the_status_that_envoy_gives_it():
    assert {details: local_replies.known_replies(1.0)[details].status for details, *_ in REFUSED} == {
        details: status for details, status, _ in REFUSED
    }


@pytest.mark.parametrize(("details", "status", "text"), REFUSED)
def test_a_request_that_is_not_routed_is_refused_with_a_text(gateway, details, status, text):
    assert ask(gateway, text.replace("{path}", V2)) == (status, {"error": text_of(details)})


@pytest.mark.parametrize(("details", "status", "text"), [case for case in REFUSED if case[0] in WITH_PATH])
def test_on_openais_paths_the_text_has_their_form(gateway, details, status, text):
    kind = {400: "BadRequestError", 403: "PermissionDeniedError"}[status]
    error = {"message": text_of(details), "type": kind, "param": None, "code": status}
    assert ask(gateway, text.replace("{path}", OPENAI)) == (status, {"error": error})


@pytest.mark.parametrize(("details", "status", "text"), REFUSED)
def test_an_answer_without_a_text_of_ours_names_its_details(wordless, details, status, text):
    found, answer = ask(wordless, text.replace("{path}", V2))
    assert found == status
    assert details in answer["error"]


@pytest.mark.parametrize(("details", "status", "text"), [case for case in REFUSED if case[0] in WITH_PATH])
def test_it_does_so_on_openais_paths(wordless, details, status, text):
    found, answer = ask(wordless, text.replace("{path}", OPENAI))
    assert found == status
    assert details in answer["error"]["message"]


@pytest.mark.parametrize("path", ["/nowhere", "/v2/models/m/infer"])
def test_the_text_of_a_rule_is_kept(gateway, path):
    status, answer = ask(gateway, request().replace("{path}", path))
    assert status == 404
    assert answer["error"].startswith("no such ")


@pytest.mark.usefixtures("subprocesses")
def test_headers_that_do_not_come_whole_are_told_the_limit(tmp_path):
    with running_envoy(tmp_path, header_seconds=HEADER_SECONDS) as port:
        status, answer = ask(port, "GET /v2 HTTP/1.1\r\nhost: localhost\r\nx-slow: ")
    assert (status, answer) == (408, {"error": text_of("request_header_timeout", HEADER_SECONDS)})


@pytest.mark.usefixtures("subprocesses")
def test_a_gateway_without_memory_says_so(tmp_path):
    with running_envoy(tmp_path, heap_bytes=1) as port:
        refused = until(lambda: overloaded(port), why=lambda: "the gateway has noticed")
    assert refused == {"error": text_of("overload")}


def overloaded(port):
    """Return the answer once the gateway refuses."""
    status, answer = ask(port, request().replace("{path}", "/nowhere"))
    return answer if status == 503 else None
