"""Answers of a broken or hostile MLflow server: each is one error that names what was asked for, and no secret."""

import itertools
import json
import re
import socket
import threading
from types import SimpleNamespace

import httpx
import pytest

from ipnext.errors import ArtifactMissing, InvalidInput, IPnextError, NotFound, Unavailable
from ipnext.model.manifest.sources import MlflowStream
from ipnext.model.registry.sources import FoundVersion
from ipnext.sources.access import ReadAccess
from ipnext.sources.mlflow import server as mlflow_server
from ipnext.sources.mlflow.kind import MlflowKind
from ipnext.sources.mlflow.server import Limits
from ipnext.sources.port import StreamRequest
from tests.mlflow_servers import Unread

pytestmark = pytest.mark.trust

URI = "https://mlflow.example/registry"
SECRET = "Bearer not-for-others"
ACCESS = ReadAccess(urls=(URI,), credentials={URI: SECRET})
SMALL = Limits(answer_bytes=10_000, separators=1_000)
MODELS = {
    "registered_models": [
        {"name": "ranker", "creation_timestamp": 1, "latest_versions": [{"name": "ranker", "version": "1"}]}
    ]
}
ONE = {"model_version": {"name": "ranker", "version": "1", "creation_timestamp": 5, "source": "s3://b/x"}}
VERSION = FoundVersion(key="1@5", place="1@5")
PLACE = "mlflow-artifacts:/1/run/artifacts/snapshot"
LISTED = {"files": [{"path": "snapshot.json", "is_dir": False, "file_size": 7}]}


def source_of(transport, *, access=ACCESS, limits=SMALL, uri=URI):
    (found,) = MlflowKind(transport, limits).connect([StreamRequest(MlflowStream(uri=uri, model="ranker"), access)])
    return found


class Server:
    """Answers by the end of a path; `asked` are the requests."""

    def __init__(self, **answers):
        self.answers = answers
        self.asked = []

    def __call__(self, request):
        self.asked.append(request)
        path = request.url.path.removeprefix("/registry/api/2.0/").replace("/", "_").replace("-", "_")
        found = next((answer for name, answer in self.answers.items() if path.startswith(name)), None)
        if found is None:
            return httpx.Response(404, json={"error_code": "RESOURCE_DOES_NOT_EXIST"})
        return found if isinstance(found, httpx.Response) else httpx.Response(200, json=found)

    def connect(self, **options):
        return source_of(Unread(self), **options)


def with_artifacts(uri=PLACE, **answers):
    """A server with one version whose artifacts are at a uri."""
    answers = {"mlflow_artifacts_artifacts_": httpx.Response(200, content=b"content"), **answers}
    return Server(
        mlflow_model_versions_get_download_uri={"artifact_uri": uri},
        mlflow_model_versions_get=ONE,
        **answers,
        mlflow_artifacts_artifacts=LISTED,
    )


@pytest.mark.parametrize(
    ("status", "text"),
    [
        (301, "redirects (301), which is not followed"),
        (400, "refuses the request (400, INVALID_PARAMETER_VALUE)"),
        (401, "refuses the credentials (401; they are in IPNEXT_SOURCE_CREDENTIALS_FILE, by URL)"),
        (403, "does not let these credentials read it (403;"),
        (429, "has too many requests (429)"),
        (500, "fails (500)"),
        (503, "fails (503)"),
    ],
)
def test_each_status_has_its_own_text(status, text):
    answer = httpx.Response(status, json={"error_code": "INVALID_PARAMETER_VALUE", "message": SECRET})
    with pytest.raises(Unavailable) as caught:
        Server(mlflow_registered_models=answer).connect().list_since("")
    assert text in caught.value.message
    assert caught.value.message.startswith(URI)
    assert caught.value.message.endswith("asked for the registered models")
    assert "not-for-others" not in caught.value.message


def test_a_server_that_wants_credentials_says_that_there_are_none():
    with pytest.raises(Unavailable, match="asks for credentials, and there are none"):
        Server(mlflow_registered_models=httpx.Response(401)).connect(access=ReadAccess(urls=(URI,))).list_since("")


def test_a_place_without_the_api_is_told():
    with pytest.raises(NotFound, match=r"https://mlflow.example/registry has no registered models \(404\)"):
        Server().connect().list_since("")


def test_the_credentials_go_to_the_servers_origin_alone():
    server = Server(mlflow_registered_models=httpx.Response(302, headers={"location": "https://evil.example/x"}))
    with pytest.raises(Unavailable, match="redirects"):
        server.connect().list_since("")
    assert [(str(each.url.host), each.headers["authorization"]) for each in server.asked] == [
        ("mlflow.example", SECRET)
    ]


@pytest.mark.parametrize(
    ("answer", "text"),
    [
        (b"", "is not JSON"),
        (b"<html>", "is not JSON"),
        (b"[" * 900, "is not JSON"),
        (b"[]", "is not as MLflow documents it: the whole of it"),
        (b"null", "is not as MLflow documents it: the whole of it"),
        (b'{"registered_models": {"a": 1}}', "registered_models: Input should be a valid tuple"),
        (b'{"registered_models": [{"name": 5}]}', "registered_models.0.name"),
        (b'{"registered_models": [{"name": "ranker", "creation_timestamp": 1e300}]}', "creation_timestamp"),
        (b'{"registered_models": [{"name": "ranker", "creation_timestamp": -1}]}', "creation_timestamp"),
        (
            b'{"registered_models": [{"name": "ranker", "aliases": [{"alias": "a", "version": "x"}]}]}',
            "aliases.0.version",
        ),
        (b'{"registered_models": [' + b"1," * 2_000 + b"1]}", "commas and brackets; allowed: 1000"),
        (b" " * 10_001, "is larger than 10000 bytes"),
        (b"\xff\xfe", "is not JSON"),
    ],
)
def test_answers_that_are_none_of_mlflow_are_refused(answer, text):
    with pytest.raises(Unavailable) as caught:
        Server(mlflow_registered_models=httpx.Response(200, content=answer)).connect().list_since("")
    assert text in caught.value.message
    assert f"the answer of {URI} for the registered models" in caught.value.message


def test_an_answer_without_an_end_is_cut():
    endless = httpx.Response(200, content=itertools.repeat(b" " * 1000))
    with pytest.raises(Unavailable, match="is larger than 10000 bytes"):
        Server(mlflow_registered_models=endless).connect().list_since("")


def test_a_packed_answer_is_refused():
    packed = httpx.Response(200, headers={"content-encoding": "gzip"}, stream=httpx.ByteStream(b"x"))
    with pytest.raises(Unavailable, match="is packed"):
        Server(mlflow_registered_models=packed).connect().list_since("")


def test_pages_without_an_end_are_cut():
    server = Server(mlflow_registered_models={"registered_models": [], "next_page_token": "again"})
    with pytest.raises(NotFound):
        server.connect().list_since("")
    assert len(server.asked) <= 100


def test_a_version_that_is_another_one_is_refused():
    server = with_artifacts()
    server.answers["mlflow_model_versions_get"] = {"model_version": {"name": "ranker", "version": "2"}}
    with pytest.raises(Unavailable, match="version 1 of model 'ranker' is another one"):
        server.connect().open(VERSION)


def test_a_failure_is_paid_for_once_for_all_streams():
    server = Server(mlflow_registered_models=httpx.Response(500))
    streams = [StreamRequest(MlflowStream(uri=URI, model=name), ACCESS) for name in "abc"]
    for source in MlflowKind(Unread(server)).connect(streams):
        with pytest.raises(Unavailable):
            source.list_since("")
    assert len(server.asked) == 1


@pytest.mark.parametrize("name", ["it's", 'a "b"', "a\\b", "ü" * 200])
def test_names_that_a_filter_cannot_have_are_found(name):
    """A filter is text: a name must not end it."""
    found = {"registered_models": [{"name": "other"}, {"name": name, "creation_timestamp": 3}]}
    server = Server(mlflow_registered_models=found)
    streams = [StreamRequest(MlflowStream(uri=URI, model=each), ACCESS) for each in (name, "other" * 40)]
    source, _ = MlflowKind(Unread(server)).connect(streams)
    assert source.list_since("").cursor == "0:0:3::"
    if {"'", '"', "\\"} & set(name):
        assert "filter" not in server.asked[0].url.params


def test_a_deleted_version_whose_number_was_given_again_is_missing():
    server = with_artifacts()
    with pytest.raises(ArtifactMissing, match=r"was deleted; there is another one of its number"):
        server.connect().open(FoundVersion(key="1@4", place="1@4"))


def test_a_version_that_is_gone_is_missing():
    with pytest.raises(ArtifactMissing, match="version 1 of model 'ranker'"):
        Server().connect().open(VERSION)


@pytest.mark.parametrize(
    "uri",
    [
        "mlflow-artifacts:/../secrets",
        "mlflow-artifacts:/1/%2e%2e/%2e%2e/secrets",
        "mlflow-artifacts:/1/%252e%252e/secrets",
        "mlflow-artifacts:/1//secrets",
        "mlflow-artifacts:/1/a%2f..%2fb",
        "mlflow-artifacts:/1/a\\..\\b",
        "mlflow-artifacts:/1/a%00b",
        "mlflow-artifacts:",
        f"{URI}/api/2.0/mlflow-artifacts/artifacts/../../secrets",
    ],
)
def test_artifacts_outside_the_proxys_root_are_refused(uri):
    server = with_artifacts(uri)
    with pytest.raises(InvalidInput, match="is not a path below the artifacts of a version"):
        server.connect().open(VERSION)
    assert not any("mlflow-artifacts" in str(each.url) for each in server.asked)


@pytest.mark.parametrize(
    "uri",
    [
        PLACE,
        "mlflow-artifacts://mlflow.example/1/run/artifacts/snapshot",
        f"{URI}/api/2.0/mlflow-artifacts/artifacts/1/run/artifacts/snapshot",
    ],
)
def test_artifacts_of_the_proxy_are_read(uri):
    assert with_artifacts(uri).connect().open(VERSION).size_bytes("snapshot.json") == 7


@pytest.mark.parametrize(
    "uri",
    [
        "mlflow-artifacts://evil.example/x",
        "https://evil.example/api/2.0/mlflow-artifacts/artifacts/x",
        "https://mlflow.example@evil.example/registry/api/2.0/mlflow-artifacts/artifacts/x",
        "https://mlflow.example/other",
    ],
)
def test_artifacts_of_another_server_are_refused(uri):
    server = with_artifacts(uri)
    with pytest.raises(InvalidInput, match=f"is not the artifact proxy of {re.escape(URI)}"):
        server.connect().open(VERSION)
    assert {each.url.host for each in server.asked} == {"mlflow.example"}


@pytest.mark.parametrize("uri", ["dbfs:/x", "", "ftp://x/y", "/etc", "models:/other/1", "file://host/x"])
def test_artifacts_of_another_form_are_refused(uri):
    with pytest.raises(InvalidInput, match="allowed: mlflow-artifacts:/PATH, runs:/RUN/PATH"):
        with_artifacts(uri).connect().open(VERSION)


def test_a_subdirectory_that_leads_elsewhere_is_refused():
    server = with_artifacts()
    server.answers["mlflow_artifacts_artifacts"] = {"files": [{"path": "%2e%2e", "is_dir": True}]}
    with pytest.raises(InvalidInput, match="is not a path below"):
        server.connect().open(VERSION)


def test_a_directory_without_a_snapshot_is_refused():
    server = with_artifacts()
    server.answers["mlflow_artifacts_artifacts"] = {}
    with pytest.raises(InvalidInput, match="has no snapshot"):
        server.connect().open(VERSION)


def test_the_path_of_a_file_may_not_lead_elsewhere():
    opened = with_artifacts().connect().open(VERSION)
    for path in ("../x", "/etc/passwd", "a/../../b", "%2e%2e/x", "a//b"):
        with pytest.raises(InvalidInput, match="is not a path below"):
            opened.open(path)


def read_file(answer):
    server = with_artifacts(mlflow_artifacts_artifacts_=answer)
    with server.connect().open(VERSION).open("snapshot.json") as stream:
        return stream.read()


def test_a_file_of_the_listed_size_is_read():
    assert read_file(httpx.Response(200, content=b"content")) == b"content"
    assert read_file(httpx.Response(200, content=iter([b"con", b"", b"tent"]))) == b"content"


@pytest.mark.parametrize(
    ("answer", "text"),
    [
        (httpx.Response(200, content=b"conten"), "sends 6 bytes of file 'snapshot.json'"),
        (httpx.Response(200, content=b"contents"), "sends 8 bytes of file 'snapshot.json'"),
        (httpx.Response(200, content=iter([b"con"])), "sends 3 bytes of file 'snapshot.json'"),
        (httpx.Response(200, content=itertools.repeat(b"con")), "sends more than 7 bytes of file"),
        (httpx.Response(302, headers={"location": "https://evil.example"}), "redirects (302)"),
        (httpx.Response(500), "fails (500), asked for artifact '1/run/artifacts/snapshot/snapshot.json'"),
        (
            httpx.Response(200, headers={"content-encoding": "br"}, stream=httpx.ByteStream(b"content")),
            "is packed ('br')",
        ),
    ],
)
def test_files_of_another_size_are_never_whole(answer, text):
    with pytest.raises(Unavailable) as caught:
        read_file(answer)
    assert text in caught.value.message


def test_a_file_that_is_gone_is_missing():
    with pytest.raises(ArtifactMissing, match=r"has no artifact '1/run/artifacts/snapshot/snapshot\.json'"):
        read_file(httpx.Response(404))


def test_a_file_that_is_not_listed_is_missing_without_a_request():
    server = with_artifacts()
    opened = server.connect().open(VERSION)
    before = len(server.asked)
    with pytest.raises(ArtifactMissing, match=r"file 'signature\.json' is not in"):
        opened.open("signature.json")
    assert len(server.asked) == before


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (httpx.ConnectError("[Errno 111] Connection refused"), "can't be reached for the registered models"),
        (httpx.ReadTimeout("slow"), "does not send the registered models in time"),
        (httpx.RemoteProtocolError("peer closed connection"), "breaks off its answer for the registered models"),
    ],
)
def test_broken_connections_are_told(error, text):
    def fail(request):
        raise error

    with pytest.raises(Unavailable, match=text):
        source_of(Unread(fail)).list_since("")


@pytest.mark.parametrize(
    "sent",
    [
        b"HTTP/1.1 200 OK\r\ncontent-length: 1000\r\n\r\n",
        b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nx-a: ",
        b"",
    ],
    ids=["body", "chunks", "headers", "nothing"],
)
def test_a_server_that_sends_a_byte_at_a_time_is_left(listeners, sent):
    """Its pauses are shorter than any limit of one read: the whole has a limit."""
    over = threading.Event()
    with socket.create_server(("127.0.0.1", 0)) as server:

        def drip():
            connection, _ = server.accept()
            with connection:
                try:
                    connection.sendall(sent)
                    while not over.wait(0.01):
                        if sent:
                            connection.sendall(b"1\r\n1\r\n" if b"chunked" in sent else b"1")
                except OSError:
                    return

        thread = threading.Thread(target=drip)
        thread.start()
        uri = f"http://127.0.0.1:{server.getsockname()[1]}"
        kind = MlflowKind(limits=Limits(seconds=0.5))
        stream = StreamRequest(MlflowStream(uri=uri, model="ranker"), ReadAccess(urls=(uri,)))
        try:
            with pytest.raises(Unavailable, match="does not send the registered models in time"):
                kind.connect([stream])[0].list_since("")
        finally:
            over.set()
            thread.join()
            kind._connections.http.close()


@pytest.mark.parametrize("uri", ["https://host:99999", "https://[::1", "https://host:x"])
def test_a_url_that_is_none_is_refused(uri):
    settings = MlflowStream.model_construct(uri=uri, model="ranker", alias=None)
    with pytest.raises(InvalidInput, match=r"mlflow\.uri"):
        MlflowKind().upstream(settings)


def test_every_answer_of_every_call_is_an_error_of_ours():
    """Any JSON in the place of any answer."""
    answers = [None, 1, "x", [], {}, [[]], {"files": 1}, {"run": []}, {"model_versions": "x"}, {"runs": [{}]}]
    calls = ["mlflow_model_versions_search", "mlflow_runs_get", "mlflow_experiments_get", "mlflow_runs_search"]
    whole = {
        "mlflow_registered_models": MODELS,
        "mlflow_model_versions_search": {"model_versions": [{"name": "ranker", "version": "1", "run_id": "r"}]},
        "mlflow_runs_get": {"run": {"info": {"run_id": "r", "experiment_id": "1"}}},
        "mlflow_experiments_get": {"experiment": {"name": "e"}},
    }
    for call, answer in itertools.product(calls, answers):
        content = httpx.Response(200, content=json.dumps(answer).encode())
        try:
            found = Server(**(whole | {call: content})).connect().list_since("")
        except IPnextError as error:
            told = error.message
        else:
            told = f"{URI}: {len(found.versions)}"
        assert URI in told


@pytest.mark.parametrize("size", [2**63, 10**400, -1, 1.5], ids=["2**63", "10**400", "-1", "1.5"])
def test_a_listed_size_that_is_none_is_refused(size):
    server = with_artifacts()
    server.answers["mlflow_artifacts_artifacts"] = {"files": [{"path": "snapshot.json", "file_size": size}]}
    with pytest.raises(Unavailable, match=r"is not as MLflow documents it: files\.0\.file_size"):
        server.connect().open(VERSION).open("snapshot.json")


def test_a_poll_of_many_slow_pages_ends(monkeypatch):
    """Each page comes in time, and there is always another one."""
    now = itertools.count(0, 5)
    monkeypatch.setattr(mlflow_server, "time", SimpleNamespace(monotonic=lambda: next(now)))
    page = {"registered_models": [{"name": "other"}], "next_page_token": "more"}
    server = Server(mlflow_registered_models=page)
    with pytest.raises(Unavailable, match="answers too slowly: 300 s were over before the registered models"):
        server.connect(limits=Limits()).list_since("")
    assert 1 < len(server.asked) < 40
