"""OpenAI's routes through a real Envoy and a real router before engines that stand in for vLLM."""

import http.client
import json
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from contextlib import ExitStack, contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import httpx
import pytest

from ipnext.components.identity import Component
from ipnext.components.sockets import keep_caller_proof, socket_path, socket_url
from ipnext.infra.envoy import bootstrap
from ipnext.infra.envoy import config as envoy
from ipnext.infra.envoy.listeners import EgressListener, Listeners
from ipnext.infra.gateway.process import envoy_binary
from ipnext.infra.generation_shares import openai_choices
from ipnext.infra.process.atomic_file import replace_file
from ipnext.infra.process.ports import PortBook
from ipnext.model.deployment.router_table import PartEndpoint, RoutedModel, RouterTable
from ipnext.names import INNER_HEADERS
from tests.waiting import until

MOCK = Path(__file__).parents[3] / "genai" / "support" / "mock_engine.py"
CHAT = "/v1/chat/completions"


class Site:
    """A region's Envoy, router, and engines: generation N is answered by the engine named `gN`."""

    def __init__(self, region, directory, stack):
        self.region, self.directory, self.stack = region, directory, stack
        directory.mkdir(exist_ok=True)
        self.engines = {}
        book = PortBook(directory / "ports.json")
        self.ports = {name: book.port(name) for name in ("gateway", "peers", "router", "g1", "g2")}
        self.url = f"http://127.0.0.1:{self.ports['gateway']}"
        self.peer_url = f"http://127.0.0.1:{self.ports['peers']}"
        self.router_url = f"http://127.0.0.1:{self.ports['router']}"

    def start(self, models, tables, *, peers=None, idle_seconds=60.0):
        endpoints = {number: f"http://127.0.0.1:{self.ports[f'g{number}']}" for number in (1, 2)}
        routed = tuple(
            RoutedModel(
                model=table.model,
                served=table.served,
                endpoints=tuple(
                    PartEndpoint(part="llm", url=endpoints[one.generation], generations=(one.generation,))
                    for one in table.served
                    if one.generation in endpoints
                ),
            )
            for table in tables
        )
        egress = socket_url(self.directory / "egress")
        router_table = RouterTable(
            revision=1,
            region=self.region,
            models=tuple(one for one in routed if one.served),
            choices=openai_choices(self.region, peers or {}, tables),
            egress=egress,
        )
        (self.directory / "router.json").write_text(router_table.model_dump_json())
        gateway = envoy.Gateway(
            region=self.region,
            router_url=f"http://127.0.0.1:{self.ports['router']}",
            peers=peers or {},
            tables={table.model: table for table in tables},
            request_seconds=5.0,
            stream_idle_seconds=idle_seconds,
        )
        files = {name: self.directory / f"{name}.json" for name in ("routes", "clusters")}
        replace_file(files["routes"], envoy.as_json(envoy.discovery(1, envoy.routes(gateway))))
        replace_file(files["clusters"], envoy.as_json(envoy.discovery(1, envoy.clusters(gateway))))
        config = bootstrap.bootstrap(
            self.ports["gateway"],
            str(self.directory / "admin.sock"),
            region=self.region,
            routes_file=str(files["routes"]),
            clusters_file=str(files["clusters"]),
            limits=bootstrap.GatewayLimits(stream_idle_seconds=idle_seconds),
            listeners=Listeners(
                peer_port=self.ports["peers"],
                egress=EgressListener(
                    path=socket_path(egress, Component.ROUTER), proof=keep_caller_proof(egress, Component.ROUTER)
                ),
            ),
        )
        (self.directory / "bootstrap.json").write_bytes(envoy.as_json(config))
        for number in (1, 2):
            self.engine(f"g{number}", models)
        self.router = self.run(
            [
                *(sys.executable, "-m", "serving.router", "--port", str(self.ports["router"]), "--region", self.region),
                *("--table", str(self.directory / "router.json"), "--max-in-flight", "6"),
            ]
        )
        self.envoy = self.run(
            [
                *(str(envoy_binary()), "--config-path", str(self.directory / "bootstrap.json")),
                *("--disable-hot-restart", "--concurrency", "1", "--log-level", "error"),
            ]
        )
        until(lambda: answers(f"{self.url}/v2/health/ready"), why=lambda: f"gateway of {self.region} answers")
        for url in endpoints.values():
            until(lambda url=url: answers(f"{url}/health"), why=lambda: "the engine answers")
        return self

    def engine(self, name, model):
        self.engines[name] = self.run(
            [sys.executable, str(MOCK), "--port", str(self.ports[name]), "--model", model, "--name", name]
        )

    def run(self, command):
        process = subprocess.Popen(command)
        self.stack.callback(process.wait)
        self.stack.callback(process.kill)
        return process


def answers(url):
    try:
        return httpx.get(url, timeout=60).status_code == 200
    except httpx.TransportError:
        return False


def generating(builder, model, region, shares, served):
    table = builder(model, region, parts=("llm",)).table(1, shares, served=served)
    held = tuple(one.model_copy(update={"engines": {"llm": "vllm"}}) for one in table.served)
    return table.model_copy(update={"served": held})


@contextmanager
def sites(tmp_path_factory, builder):
    """Two regions: `eu` sends a quarter of model `shared` to `us`."""
    directory = tmp_path_factory.mktemp("openai")
    with ExitStack() as stack:
        eu, us = (Site(region, directory / region, stack) for region in ("eu", "us"))
        ranker = builder("ranker", "eu", parts=("llm",)).table(1, {1: 1.0})
        eu.start(
            "llm",
            [
                generating(builder, "llm", "eu", {1: 0.75, 2: 0.25}, [1, 2, 3]),
                generating(builder, "empty", "eu", {}, [1]),
                generating(builder, "shared", "eu", {("us", 2): 1.0}, []),
                ranker,
            ],
            peers={"us": us.peer_url},
        )
        us.start("shared", [generating(builder, "shared", "us", {1: 1.0}, [1, 2])], peers={"eu": eu.peer_url})
        yield eu, us


@pytest.fixture(scope="module")
def eu(tmp_path_factory, builder, subprocesses):
    with sites(tmp_path_factory, builder) as (eu, _):
        yield eu


@contextmanager
def one_site(directory, builder, **more):
    """A region with model `llm` alone."""
    with ExitStack() as stack:
        yield Site("eu", directory, stack).start("llm", [generating(builder, "llm", "eu", {1: 1.0}, [1])], **more)


@pytest.fixture(scope="module")
def hasty(tmp_path_factory, builder, subprocesses):
    """A region whose gateway waits half a second for something to come or go."""
    with one_site(tmp_path_factory.mktemp("hasty"), builder, idle_seconds=0.5) as site:
        yield site


@pytest.fixture
def client(eu):
    with httpx.Client(base_url=eu.url, timeout=60) as client:
        yield client


def ask(model="llm", **more):
    return {"model": model, "messages": [{"role": "user", "content": "say it"}], "max_tokens": 3, **more}


def error(answer, status, kind):
    assert answer.status_code == status, answer.text
    found = answer.json()["error"]
    assert set(found) == {"message", "type", "param", "code"}
    assert found["type"] == kind
    assert found["code"] == status
    return found["message"]


def test_the_model_in_the_body_is_answered_by_weight_each_stream_by_one_generation(client):
    counts = Counter()
    for number in range(120):
        answer = client.post(CHAT, json=ask(stream=bool(number % 2)))
        assert answer.status_code == 200
        generation = answer.headers["x-ipnext-generation"]
        assert f"g{generation}-0" in answer.text
        assert f"g{3 - int(generation)}-" not in answer.text
        counts[generation] += 1
    assert set(counts) == {"1", "2"}
    assert 0.1 < counts["2"] / 120 < 0.4


def test_a_generation_that_the_client_names_is_kept(client):
    headers = {"x-ipnext-generation": "2"}
    answers = [client.post(CHAT, json=ask(), headers=headers) for _ in range(10)]
    assert {answer.headers["x-ipnext-generation"] for answer in answers} == {"2"}


def test_a_generation_that_is_not_served_is_refused_in_openais_form(client):
    answer = client.post(CHAT, json=ask(), headers={"x-ipnext-generation": "9"})
    assert "served: 1, 2, 3" in error(answer, 404, "NotFoundError")


def test_a_model_without_shares_asks_to_come_back_in_openais_form(client):
    answer = client.post(CHAT, json=ask("empty"))
    assert "no capacity" in error(answer, 503, "ServiceUnavailableError")
    assert answer.headers["retry-after"] == "1"


def test_a_share_of_another_region_is_answered_there(client):
    answer = client.post(CHAT, json=ask("shared", stream=True))
    assert answer.status_code == 200
    assert answer.headers["x-ipnext-region"] == "us"
    assert answer.headers["x-ipnext-generation"] == "2"
    assert "data: [DONE]" in answer.text


def test_an_adapter_is_routed_as_its_model(client):
    answer = client.post(CHAT, json=ask("llm:polite"))
    assert answer.status_code == 404
    assert "llm:polite" in answer.text
    assert answer.headers["x-ipnext-generation"] in {"1", "2"}


def test_a_model_whose_name_begins_like_another_is_not_taken_for_it(client):
    answer = client.post(CHAT, json=ask("llm2"))
    assert answer.json()["error"]["code"] == "model_not_found"
    assert "x-ipnext-generation" not in answer.headers


def test_what_names_no_model_is_the_routers_to_answer(client):
    for content in (b"{}", b"nonsense", b"[1]"):
        answer = client.post(CHAT, content=content, headers={"content-type": "application/json"})
        error(answer, 400, "BadRequestError")
    assert [card["id"] for card in client.get("/v1/models").json()["data"]] == ["llm", "empty"]
    assert client.post(CHAT, json=ask("ranker")).json()["error"]["code"] == "model_not_found"


def test_a_prompt_of_many_megabytes_passes_and_one_beyond_the_limit_is_refused(client):
    long = "x" * (10 * 2**20)
    assert client.post(CHAT, json=ask(messages=[{"role": "user", "content": long}])).status_code == 200
    beyond = "x" * (33 * 2**20)
    answer = client.post(CHAT, json=ask(messages=[{"role": "user", "content": beyond}]))
    assert "at most 33554432 bytes" in error(answer, 413, "BadRequestError")


def test_other_routes_of_an_engine_are_not_reachable(client):
    for path in ("/pause", "/collective_rpc"):
        assert client.post(path, json={"model": "llm"}).status_code == 404
    answer = client.post("/v1/load_lora_adapter", json={"model": "llm"})
    assert "served: GET /v1/models" in error(answer, 404, "NotFoundError")


def test_a_path_of_neither_protocol_is_told_where_they_are(client):
    answer = client.post("/chat/completions", json=ask())
    assert answer.status_code == 404
    assert "/v1/..." in answer.json()["error"]


def test_a_body_without_a_model_is_told_which_there_are(client):
    answer = client.post(CHAT, json={"messages": []})
    assert error(answer, 400, "BadRequestError") == "model is required: the name of a model. Served: llm, empty"


def test_a_request_that_stops_in_its_middle_is_told_the_limit(hasty):
    head = f"POST {CHAT} HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\ncontent-length: 99\r\n\r\n{{"
    with socket.create_connection(("127.0.0.1", hasty.ports["gateway"]), timeout=60) as line:
        line.sendall(head.encode())
        answer = http.client.HTTPResponse(line)
        answer.begin()
        found = httpx.Response(answer.status, content=answer.read())
    assert "for 0.5 s, and the request is not whole" in error(found, 408, "TimeoutError")


def test_an_engine_that_is_silent_for_too_long_is_told_so(hasty):
    hasty.engines["g1"].send_signal(signal.SIGSTOP)
    try:
        answer = httpx.post(hasty.url + CHAT, json=ask(), timeout=60)
    finally:
        hasty.engines["g1"].send_signal(signal.SIGCONT)
    assert "for 0.5 s, and no answer has begun" in error(answer, 504, "TimeoutError")


@pytest.mark.usefixtures("subprocesses")
def test_without_a_router_the_client_is_to_come_back(tmp_path, builder):
    with one_site(tmp_path, builder) as site:
        site.router.kill()
        site.router.wait()
        answer = httpx.post(site.url + CHAT, json=ask(), timeout=60)
    assert "gets no answer from its router" in error(answer, 503, "ServiceUnavailableError")
    assert answer.headers["retry-after"] == "1"


def test_a_stream_may_take_longer_than_an_answer_of_v2(client):
    """`request_seconds` is 5 here."""
    began = time.monotonic()
    answer = client.post(CHAT, json=ask(stream=True, max_tokens=2600))
    assert "data: [DONE]" in answer.text
    assert time.monotonic() - began > 5.2


def test_pieces_come_through_as_the_engine_sends_them(client):
    with client.stream("POST", CHAT, json=ask(stream=True, max_tokens=1500)) as answer:
        seen = [time.monotonic() for _ in answer.iter_raw()]
    assert len(seen) > 30
    assert seen[-1] - seen[0] > 0.3


def test_a_client_that_leaves_ends_the_engines_work(eu, client):
    engine = f"http://127.0.0.1:{eu.ports['g1']}/metrics"

    def aborted():
        lines = httpx.get(engine, timeout=60).text.splitlines()
        return float(next(line for line in lines if line.startswith("mock:aborted_total")).rpartition(" ")[2])

    before = aborted()
    headers = {"x-ipnext-generation": "1"}
    with client.stream("POST", CHAT, json=ask(stream=True, max_tokens=5000), headers=headers) as answer:
        next(answer.iter_raw())
    until(lambda: aborted() == before + 1, why=lambda: "the engine has stopped")


@pytest.mark.parametrize(
    ("path", "beyond", "limit"), [("/v2/models/ranker/infer", 2**30, 2**28), (CHAT, 2**25 + 1, 2**25)]
)
def test_a_request_is_not_held_until_it_is_whole(eu, path, beyond, limit):
    """The router refuses it from its head, before the body has begun."""
    head = f"POST {path} HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n"
    with socket.create_connection(("127.0.0.1", eu.ports["gateway"]), timeout=60) as line:
        line.sendall(f"{head}content-length: {beyond}\r\n\r\n".encode())
        answer = line.recv(4096).decode()
    assert answer.startswith("HTTP/1.1 413 ")
    assert str(limit) in answer, "not the router's words"


def test_bodies_that_do_not_come_whole_take_next_to_no_memory_of_the_gateway(eu, client):
    """A dozen bodies of 16 MiB without their last byte: the gateway has passed on what has come."""

    def memory():
        lines = Path(f"/proc/{eu.envoy.pid}/status").read_text().splitlines()
        return int(next(line for line in lines if line.startswith("VmHWM")).split()[1]) * 1024

    body = json.dumps(ask(messages=[{"role": "user", "content": "x" * 2**24}])).encode()
    head = (
        f"POST {CHAT} HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\ncontent-length: "
        f"{len(body)}\r\n\r\n"
    )
    before = memory()
    with ExitStack() as stack:
        lines = [
            stack.enter_context(socket.create_connection(("127.0.0.1", eu.ports["gateway"]), timeout=60))
            for _ in range(12)
        ]
        for line in lines:
            line.sendall(head.encode() + body[:-1])
        assert client.post(CHAT, json=ask()).status_code == 200
        after = memory()
        for line in lines:
            line.sendall(body[-1:])
            assert line.recv(4096).startswith(b"HTTP/1.1 200 ")
    assert after - before < 12 * 2**24 / 3


def test_a_large_prompt_is_answered_in_another_region(client):
    long = "x" * (10 * 2**20)
    answer = client.post(CHAT, json=ask("shared", messages=[{"role": "user", "content": long}]))
    assert (answer.status_code, answer.headers["x-ipnext-region"]) == (200, "us")


def test_a_generation_that_only_another_region_has_can_be_named(client):
    answer = client.post(CHAT, json=ask("shared"), headers={"x-ipnext-generation": "2"})
    assert (answer.status_code, answer.headers["x-ipnext-region"]) == (200, "us")
    answer = client.post(CHAT, json=ask("shared"), headers={"x-ipnext-generation": "1"})
    assert "served: 2" in error(answer, 404, "NotFoundError")


@pytest.mark.parametrize("name", INNER_HEADERS)
def test_no_client_steers_by_a_header_of_ours(client, name):
    for value in ("us", "region-us", "us;chosen-by=weight", "weight", "1"):
        for model, region in (("llm", "eu"), ("shared", "us")):
            answer = client.post(CHAT, json=ask(model), headers={name: value})
            assert (answer.status_code, answer.headers["x-ipnext-region"]) == (200, region)


@pytest.mark.parametrize(
    ("steering", "status"),
    [
        ({"proof": True, "x-ipnext-upstream": "region-us"}, 200),
        ({"x-ipnext-upstream": "region-us"}, 403),
        ({"x-ipnext-caller-proof": "x" * 43, "x-ipnext-upstream": "region-us"}, 403),
        ({"proof": True, "x-ipnext-upstream": "router"}, 403),
        ({"proof": True}, 403),
        ({"proof": True, "x-ipnext-upstream": "region-nowhere"}, 503),
    ],
    ids=["the router", "no proof", "another proof", "no other region", "nowhere", "an unknown region"],
)
def test_the_egress_is_for_the_router_and_leads_to_other_regions_alone(eu, steering, status):
    place = socket_url(eu.directory / "egress")
    headers = {name: value for name, value in steering.items() if name != "proof"}
    headers |= {"x-ipnext-generation": "2", "x-ipnext-forwarded-by": "eu;chosen-by=weight"}
    if "proof" in steering:
        headers["x-ipnext-caller-proof"] = keep_caller_proof(place, Component.ROUTER)
    path = socket_path(place, Component.ROUTER)
    assert Path(path).stat().st_mode & 0o777 == 0o600
    with httpx.Client(transport=httpx.HTTPTransport(uds=path), base_url="http://localhost", timeout=60) as router:
        answer = router.post(CHAT, json=ask("shared"), headers=headers)
    assert answer.status_code == status
    assert ("x-ipnext-region" in answer.headers) == (status == 200)


STEERING = {
    "x-ipnext-refused": "1",
    "x-ipnext-upstream": "region-us",
    "x-envoy-ratelimited": "true",
    "set-cookie": "a=b",
    "access-control-allow-origin": "*",
}


@contextmanager
def steering_server():
    """A server that answers every POST with headers that steer gateways and browsers.

    Gives its URL, and the paths of its requests.
    """
    paths = []

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_):
            pass

        def do_POST(self):
            paths.append(self.path)
            self.rfile.read(int(self.headers["content-length"]))
            body = b'{"model":"llm"}'
            self.send_response(200)
            for name, value in {**STEERING, "x-ipnext-region": "us", "content-length": str(len(body))}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(body)

        def do_GET(self):
            self.send_response(200)
            self.send_header("content-length", "0")
            self.end_headers()

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}", paths
        finally:
            server.shutdown()
            thread.join()


@pytest.fixture(scope="module")
def steered(tmp_path_factory, builder, subprocesses):
    """A region whose engine of generation 1, and whose peer `us`, steer.

    Also the paths of the requests that reached them.
    """
    with ExitStack() as stack:
        url, paths = stack.enter_context(steering_server())
        site = Site("eu", tmp_path_factory.mktemp("steered"), stack)
        site.ports["g1"] = int(url.rpartition(":")[2])
        engine, site.engine = site.engine, lambda name, model: None if name == "g1" else engine(name, model)
        site.start(
            "llm",
            [
                generating(builder, "llm", "eu", {1: 1.0}, [1]),
                generating(builder, "shared", "eu", {("us", 2): 1.0}, []),
                builder("ranker", "eu", parts=("llm",)).table(1, {("us", 1): 1.0}, served=[]),
            ],
            peers={"us": url},
        )
        yield site, paths


@pytest.mark.parametrize(
    ("path", "model"),
    [
        (CHAT, "llm"),
        (CHAT, "shared"),
        ("/v2/models/ranker/infer", "ranker"),
        ("/v2/models/ranker/versions/1/infer", ""),
    ],
    ids=["an engine", "a peer at the egress", "a peer by weight", "a peer by version"],
)
def test_neither_an_engine_nor_a_peer_steers_the_gateway_or_the_client(steered, path, model):
    site, paths = steered
    paths.clear()
    answer = httpx.post(site.url + path, json=ask(model), timeout=60)
    assert (answer.status_code, answer.content) == (200, b'{"model":"llm"}')
    assert paths == [path], "it was sent again"
    assert not answer.headers.keys() & STEERING.keys()
    assert answer.headers["x-ipnext-region"] == ("eu" if model == "llm" else "us")


def test_the_gateway_reads_no_body(builder):
    gateway = envoy.Gateway(
        region="eu",
        router_url="http://127.0.0.1:1",
        peers={},
        tables={"m": builder("m").table(1, {1: 1.0}), "g": generating(builder, "g", "eu", {1: 1.0}, [1])},
        request_seconds=60.0,
    )
    rules = envoy.routes(gateway)[0]["virtual_hosts"][0]["routes"]
    assert "body_buffer" not in json.dumps(rules)
    assert "metadata" not in json.dumps(rules)
    config = bootstrap.bootstrap(1, "admin.sock", region="eu", routes_file="r", clusters_file="c")
    [listener] = config["static_resources"]["listeners"]
    [chain] = listener["filter_chains"]
    filters = [one["name"] for one in chain["filters"][0]["typed_config"]["http_filters"]]
    assert filters == ["envoy.filters.http.router"], "any other one may wait for bodies"
