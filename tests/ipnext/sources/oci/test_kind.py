"""What a tag of an OCI repository names: found once for each move, read by digest, and refused with a reason."""

import itertools
import json
import time
from datetime import UTC, datetime
from types import SimpleNamespace

import httpx
import pytest

from ipnext.artifacts.stores.file_store import FileArtifactStore
from ipnext.artifacts.upload import ingest
from ipnext.errors import (
    ArtifactDigestMismatch,
    ArtifactMissing,
    InvalidInput,
    IPnextError,
    NotFound,
    PathNotAllowed,
    TooLarge,
    Unavailable,
)
from ipnext.model.manifest.sources import OciStream
from ipnext.model.registry.registry import ArtifactFile
from ipnext.model.registry.sources import MOST_LABELS, FoundVersion, Reach
from ipnext.model.value import canonical_json
from ipnext.sources.access import ReadAccess
from ipnext.sources.kinds import SourceKinds
from ipnext.sources.oci import blob as oci_blob
from ipnext.sources.oci.image import FILE_PATH, INDEX, LARGEST_BYTES, MODEL, MOST_LAYERS, TITLE, files_of, read_manifest
from ipnext.sources.oci.kind import OciKind
from ipnext.sources.oci.registry import Connections, Repository, parse_repository
from tests.ipnext.conftest import snapshot_manifest
from tests.ipnext.sources.oci.fake_registry import BASE, HOST, NAME, Chunks, FakeRegistry, digest_of, image, layer

pytestmark = pytest.mark.trust

BASIC, SECRET = "Basic dXNlcjpzM2NyZXQ=", "dXNlcjpzM2NyZXQ="
FILES = {"snapshot.json": b"{}", "weights": b"0123456789" * 1000}
WEIGHTS = digest_of(FILES["weights"])
STORAGE = "https://storage.example.com/bucket"


@pytest.fixture
def registry(monkeypatch) -> FakeRegistry:
    monkeypatch.setattr(oci_blob, "PAUSES_SECONDS", (0.0, 0.0, 0.0))
    found = FakeRegistry()
    found.push(FILES)
    return found


def authorizations(registry, host):
    return [each.headers.get("authorization") for each in registry.seen if each.url.host == host]


# Polls


def test_the_kind_is_built_in():
    assert isinstance(SourceKinds().get("oci"), OciKind)


def test_each_move_of_a_tag_is_a_version_also_one_back_to_a_former_digest(registry):
    first = registry.tags["prod"]
    source, cursor, keys, places = registry.watch(), "", [], []
    for digest in (first, registry.push({"snapshot.json": b"2"}), first):
        registry.tags["prod"] = digest
        listing = registry.watch().list_since(cursor)
        assert listing == registry.watch().list_since(cursor), "the same cursor gives the same versions"
        (version,) = listing.versions
        cursor = listing.cursor
        keys.append(version.key)
        places.append(version.place)
    assert source.list_since(cursor).versions == ()
    assert len(set(keys)) == 3
    assert places == [first, digest, first] or places[0] == places[2] == first
    assert [key.partition(":")[0] for key in keys] == ["1", "2", "3"]
    assert cursor == f"3:{first}"


def test_a_poll_without_news_is_one_request_that_reads_nothing(registry):
    cursor = registry.watch().list_since("").cursor
    registry.seen.clear()
    for _ in range(3):
        assert registry.watch().list_since(cursor).versions == ()
    assert registry.lines == ["HEAD manifests/prod"] * 3


def test_streams_of_one_tag_share_one_request_and_its_error(registry):
    access = ReadAccess(urls=(BASE,))
    cursor = registry.watch().list_since("").cursor
    registry.seen.clear()
    assert all(not each.list_since(cursor).versions for each in registry.watch_all(*[access] * 50))
    assert len(registry.seen) == 1
    registry.answers["/prod"] = lambda _: httpx.Response(503)
    for each in registry.watch_all(*[access] * 50):
        with pytest.raises(Unavailable, match="answers 503 for prod"):
            each.list_since(cursor)
    assert len(registry.seen) == 2


def test_a_stream_that_may_not_read_the_registry_asks_nothing(registry):
    first, second = registry.watch_all(ReadAccess(urls=(f"{BASE}/other",)), ReadAccess(urls=(f"{BASE}/{NAME}",)))
    with pytest.raises(PathNotAllowed, match=r"IPNEXT_SOURCE_URLS|allowed urls"):
        first.list_since("")
    with pytest.raises(PathNotAllowed):
        first.open(FoundVersion(key="1", place=registry.tags["prod"]))
    assert registry.seen == []
    assert len(second.list_since("").versions) == 1


def test_a_manifest_that_is_not_the_one_that_the_registry_names_is_no_version(registry):
    digest = registry.tags["prod"]
    registry.manifests[digest] = json.dumps(image([layer(b"evil", "snapshot.json")])).encode()
    registry.answers["manifests/prod"] = lambda _: httpx.Response(200, headers={"Docker-Content-Digest": digest})
    with pytest.raises(ArtifactDigestMismatch, match=r"has SHA-256 .*, expected"):
        registry.watch().list_since("")
    with pytest.raises(ArtifactDigestMismatch):
        registry.open()


@pytest.mark.parametrize("header", [None, "sha512:" + "0" * 128, "sha256:../../x"])
def test_without_a_digest_from_the_registry_that_of_the_bytes_counts(registry, header):
    content = registry.manifests[registry.tags["prod"]]

    def answer(request):
        headers = {"Docker-Content-Digest": header} if header else {}
        return httpx.Response(200, content=b"" if request.method == "HEAD" else content, headers=headers)

    registry.answers["manifests/prod"] = answer
    (version,) = registry.watch().list_since("").versions
    assert version.place == registry.tags["prod"]


def test_a_version_is_read_by_its_digest_after_its_tag_has_moved(registry, tmp_path):
    content = b"w" * 5000
    manifest = snapshot_manifest(content)
    files = {"snapshot.json": canonical_json(manifest).encode(), "file-0.txt": content, "README.md": b"hello"}
    registry.push(files)
    source = registry.watch()
    (version,) = source.list_since("").versions
    registry.push({"snapshot.json": b"another"})
    registry.seen.clear()
    store = FileArtifactStore(tmp_path)
    assert ingest(store, source.open(version)).manifest == manifest
    with store.open_blob(manifest.files[0].sha256) as stream:
        assert stream.read() == content
    assert not [line for line in registry.lines if "prod" in line]


@pytest.mark.parametrize(
    ("status", "error", "text"),
    [
        (404, NotFound, f"{BASE}/{NAME} has no prod"),
        (401, Unavailable, "asks for credentials, and there are none"),
        (403, Unavailable, "asks for credentials, and there are none"),
        (307, Unavailable, "redirects prod elsewhere"),
        (429, Unavailable, "answers 429"),
        (500, Unavailable, "answers 500"),
    ],
)
def test_a_registry_that_gives_no_manifest_is_described(registry, status, error, text):
    registry.answers["/prod"] = lambda _: httpx.Response(status, headers={"location": f"{BASE}/x"})
    with pytest.raises(error, match=text):
        registry.watch().list_since("")


@pytest.mark.parametrize(
    ("fault", "text"),
    [
        (httpx.ConnectError("[Errno 111] Connection refused"), "can't be reached: .*refused"),
        (httpx.ReadTimeout("x"), "does not answer in time"),
        (httpx.RemoteProtocolError("x"), "breaks off its answer"),
    ],
)
def test_a_registry_that_does_not_answer_is_unavailable(registry, fault, text):
    def fail(_):
        raise fault

    registry.answers["/prod"] = fail
    with pytest.raises(Unavailable, match=text):
        registry.watch().list_since("")


@pytest.mark.parametrize("cursor", ["x", "0:sha256:" + "0" * 64, "1:sha256:0"])
def test_a_cursor_of_another_form_is_refused(registry, cursor):
    with pytest.raises(InvalidInput, match="cursor"):
        registry.watch().list_since(cursor)


# Settings


@pytest.mark.parametrize(
    ("repository", "url"),
    [
        ("Registry.example.com/team/m", "https://registry.example.com/team/m"),
        ("registry.example.com:5000/m", "https://registry.example.com:5000/m"),
        ("localhost:5000/m", "http://localhost:5000/m"),
        ("127.0.0.1:5000/m", "http://127.0.0.1:5000/m"),
        ("[::1]:5000/m", "http://[::1]:5000/m"),
        ("127.0.0.1.example.com/m", "https://127.0.0.1.example.com/m"),
    ],
)
def test_only_a_loopback_registry_is_read_without_encryption(repository, url):
    settings = OciStream(repository=repository)
    assert OciKind().upstream(settings) == f"{repository}:latest"
    OciKind().check(settings, ReadAccess(urls=(url,)))
    other = url.replace("https:", "http:") if url.startswith("https") else url.replace("http:", "https:")
    with pytest.raises(PathNotAllowed):
        OciKind().check(settings, ReadAccess(urls=(other,)))


def test_an_impossible_port_is_refused_as_a_field():
    for use in (OciKind().upstream, lambda settings: OciKind().check(settings, ReadAccess(reach=Reach.ANY))):
        with pytest.raises(InvalidInput, match="port") as caught:
            use(OciStream(repository="registry.example.com:99999/m"))
        assert caught.value.field == "oci.repository"


# Facts of a version


def test_annotations_and_the_training_record_describe_a_version(registry):
    record = {
        "trainedAt": "2026-01-02T00:00:00Z",
        "metrics": {"auc": 0.8},
        "tags": {"stage": "b"},
        "lineage": {"run": "7"},
    }
    annotations = {
        "org.opencontainers.image.created": "2026-01-01T01:00:00+01:00",
        "org.opencontainers.image.revision": "abc",
        "org.opencontainers.image.source": "https://git.example.com/m",
        "org.opencontainers.image.version": "3",
        "stage": "a",
    }
    digest = registry.push(FILES, annotations=annotations)
    (version,) = registry.watch().list_since("").versions
    assert version.trained_at == datetime(2026, 1, 1, tzinfo=UTC)
    assert version.tags == {"org.opencontainers.image.version": "3", "stage": "a"}
    assert version.lineage == {"commit": "abc", "source": "https://git.example.com/m", "digest": digest}
    digest = registry.push(FILES | {"training.json": json.dumps(record).encode()}, annotations=annotations)
    (version,) = registry.watch().list_since("").versions
    assert version.trained_at == datetime(2026, 1, 2, tzinfo=UTC)
    assert version.tags == {"org.opencontainers.image.version": "3", "stage": "b"}
    assert version.metrics == {"auc": 0.8}
    assert version.lineage == {"commit": "abc", "source": "https://git.example.com/m", "digest": digest, "run": "7"}


@pytest.mark.parametrize("created", ["", "yesterday", "2026-01-01T00:00:00", "9999-12-31T23:59:59-14:00", "1"])
def test_a_time_that_is_none_is_left_out(registry, created):
    registry.push(FILES, annotations={"org.opencontainers.image.created": created})
    (version,) = registry.watch().list_since("").versions
    assert version.trained_at is None


def test_annotations_that_cannot_be_kept_are_left_out(registry):
    many = {f"a{number}": "x" for number in range(3 * MOST_LABELS)}
    record = {"tags": {f"b{number}": "x" for number in range(MOST_LABELS - 1)}}
    files = FILES | {"training.json": json.dumps(record).encode()}
    registry.push(files, annotations={"a": "\0", "b\n": "x", "long": "x" * 5001, "c": "\ud800"} | many)
    (version,) = registry.watch().list_since("").versions
    assert len(version.tags) == MOST_LABELS
    assert not {"a", "b\n", "long", "c"} & set(version.tags)


@pytest.mark.parametrize("content", [b"{", b"x" * (256 * 2**10 + 1), b'{"tags": 1}'])
def test_an_unreadable_training_record_hides_no_version(registry, content):
    registry.push(FILES | {"training.json": content}, annotations={"stage": "a"})
    (version,) = registry.watch().list_since("").versions
    assert version.tags == {"stage": "a"}


# Manifests


def test_layers_of_both_forms_and_of_other_plain_types_are_files(registry):
    layers = [
        layer(b"1", "snapshot.json", "application/json"),
        layer(b"2", "ignored", "application/vnd.cncf.model.weight.v1.raw", annotations={FILE_PATH: "a/b", TITLE: "b"}),
        layer(b"3", "c", "application/octet-stream"),
        layer(b"4", "d", ""),
        layer(b"5", "snapshot.json.sig"),
    ]
    registry.blobs |= {digest_of(content): content for content in (b"1", b"2", b"3", b"4", b"5")}
    registry.put(image(layers, annotations=None))
    found = {path: registry.read(path) for path in ("snapshot.json", "a/b", "c", "d", "snapshot.json.sig")}
    assert found == {"snapshot.json": b"1", "a/b": b"2", "c": b"3", "d": b"4", "snapshot.json.sig": b"5"}
    assert registry.open().size_bytes("a/b") == 1
    for use in (registry.open().size_bytes, registry.open().open):
        with pytest.raises(ArtifactMissing, match=f"file 'b' is not in oci://{HOST}/{NAME}@sha256:"):
            use("b")


def index(*manifests, **changes):
    return {"schemaVersion": 2, "mediaType": INDEX, "manifests": list(manifests)} | changes


def entry(digest, **changes):
    return {"mediaType": "application/vnd.oci.image.manifest.v1+json", "digest": digest, "size": 1} | changes


def test_of_an_index_the_only_image_or_the_only_model_is_read(registry):
    digest, other = registry.tags["prod"], registry.push({"snapshot.json": b"2"}, tag="other")
    for manifests in ([entry(digest)], [entry(other), entry(digest, artifactType=MODEL)]):
        registry.put(index(*manifests, annotations={"stage": "a"}))
        assert registry.read() == FILES["weights"]
        assert registry.watch().list_since("").versions[0].tags == {"stage": "a"}


def test_an_index_that_leaves_a_choice_is_refused(registry):
    digest = registry.tags["prod"]
    model = entry(digest, artifactType=MODEL)
    for manifests in ([], [entry(digest)] * 2, [model] * 2):
        registry.put(index(*manifests))
        with pytest.raises(InvalidInput, match=r"is an index of . manifests"):
            registry.open()
    inner = registry.put(index(entry(digest)))
    registry.put(index(entry(inner)))
    with pytest.raises(InvalidInput, match="index inside an index"):
        registry.open()


def changed(**changes):
    return image([layer(b"{}", "snapshot.json", **changes)])


PACKED = [
    "application/vnd.oci.image.layer.v1.tar+gzip",
    "application/vnd.oci.image.layer.v1.tar+zstd",
    "application/vnd.docker.image.rootfs.diff.tar.gzip",
    "application/vnd.cncf.model.weight.v1.tar",
    "application/vnd.cncf.model.weight.v1.tar+gzip",
    "application/vnd.cncf.model.weight.v1.safetensors",
    "application/x-tar",
    "application/gzip",
]
HOSTILE = {
    "huge": (b"{" + b" " * LARGEST_BYTES + b"}", "is too large; allowed: 4194304 bytes"),
    "deep": (b'{"schemaVersion": 2, "layers": ' + b"[" * 100_000, "is not JSON: "),
    "many values": (b"[" + b"[]," * 200_001, "commas and brackets"),
    "no JSON": (b"\xff", "is not JSON"),
    "a list": (b"[]", "must be a JSON object"),
    "another schema": ({"schemaVersion": 1, "fsLayers": []}, "schemaVersion: '1' is not read; allowed: 2"),
    "no layers": ({"schemaVersion": 2}, "layers"),
    "layers and manifests": (image([], manifests=[]), "both layers and manifests"),
    "sha512": (changed(digest="sha512:" + "0" * 128), r"layers.0.digest"),
    "no digest": (changed(digest="sha256:../../../etc/passwd"), r"layers.0.digest"),
    "negative size": (changed(size=-1), r"layers.0.size"),
    "size in words": (changed(size="5"), r"layers.0.size"),
    "endless size": (changed(size=2**63), r"layers.0.size"),
    "annotation": (changed(annotations={TITLE: 5}), r"layers.0.annotations"),
    "urls": (changed(urls=["http://127.0.0.1/x"]), "layer 0 .* has urls"),
    "unpacked by oras": (changed(annotations={TITLE: "d", "io.deis.oras.content.unpack": "true"}), "is packed"),
    "no title": (changed(annotations={}), "has no path"),
    "null annotations": (changed(annotations=None), "has no path"),
    "empty title": (changed(annotations={TITLE: ""}), "has no path"),
    "long title": (changed(annotations={TITLE: "x" * 1025}), "more than 1024 characters"),
    "long step": (changed(annotations={TITLE: "x" * 256}), "is too long"),
    "..": (changed(annotations={TITLE: "../x"}), r"holds an empty step, '\.' or '\.\.'"),
    "absolute": (changed(annotations={TITLE: "/etc/passwd"}), "is absolute"),
    "drive": (changed(annotations={FILE_PATH: "C:/x"}), "is absolute"),
    "NUL": (changed(annotations={TITLE: "a\0b"}), "cannot be printed"),
    "surrogate": (changed(annotations={TITLE: "\ud800"}), "cannot be printed"),
    "own name": (changed(annotations={TITLE: "snapshot.json/x"}), "takes the name snapshot.json"),
    "same path": (image([layer(b"1", "a"), layer(b"2", "a")]), r"layer 1 \('a'\) has the path of another layer"),
    "same manifest": (image([layer(b"1", "snapshot.json"), layer(b"2", "snapshot.json")]), "path of another layer"),
    "below a file": (image([layer(b"1", "a"), layer(b"2", "a/b")]), "lies below another file"),
    "many layers": (image([layer(b"", "a")] * (MOST_LAYERS + 1)), f"layers: .*{MOST_LAYERS}"),
    **{kind: (changed(mediaType=kind), "is packed .*allowed: application/vnd.cncf.model") for kind in PACKED},
}


@pytest.mark.parametrize(("manifest", "text"), HOSTILE.values(), ids=HOSTILE)
def test_a_hostile_manifest_is_found_without_facts_and_refused_with_its_reason(registry, manifest, text):
    digest = registry.put(manifest)
    (version,) = registry.watch().list_since("").versions
    assert (version.place, version.tags, version.lineage) == (digest, {}, {"digest": digest})
    with pytest.raises(InvalidInput, match=text) as caught:
        registry.watch().open(version)
    assert len(caught.value.message) < 3000
    assert not [line for line in registry.lines if "blobs" in line]


@pytest.mark.parametrize("byte", [b'"', b"\\", b"{", b"]", b"/", b"\0", b"\xff", b"9"])
def test_a_manifest_with_another_byte_is_read_or_refused_with_a_reason(byte):
    content = json.dumps(image([layer(b"1", "snapshot.json"), layer(b"2", "a/b")], annotations={"a": "b"})).encode()
    messages = []
    for place in range(len(content)):
        try:
            found = read_manifest(content[:place] + byte + content[place + 1 :], "subject")
            files_of(found, "subject")
        except InvalidInput as error:
            messages.append(error.message)
    assert messages
    assert all(message.startswith("subject: ") for message in messages)


def test_a_manifest_without_an_end_is_read_up_to_the_limit(registry):
    given = []

    def drip():
        for _ in itertools.count():
            given.append(1)
            yield b" " * 65536

    class Endless(httpx.SyncByteStream):
        def __iter__(self):
            return drip()

    registry.answers[registry.tags["prod"]] = lambda _: httpx.Response(200, stream=Endless())
    with pytest.raises(TooLarge):
        registry.open()
    assert len(given) <= LARGEST_BYTES // 65536 + 1


def test_a_version_whose_place_is_no_digest_is_refused(registry):
    with pytest.raises(InvalidInput, match="is no digest"):
        registry.watch().open(FoundVersion(key="1", place="../x"))
    assert registry.seen == []


# Blobs


def body(*pieces, status=200, **headers):
    return lambda _: httpx.Response(status, stream=Chunks(*pieces), headers=headers)


CHUNKED = {"transfer-encoding": "chunked"}
CONTENT = FILES["weights"]
WRONG = {
    "other bytes": (body(b"9" + CONTENT[1:], **CHUNKED), "has SHA-256 .*, expected"),
    "shorter": (body(CONTENT[:-1], **CHUNKED), "has 9999 bytes, and its manifest says 10000"),
    "empty": (body(**CHUNKED), "has 0 bytes"),
    "longer": (body(CONTENT + b"x", **CHUNKED), "has more bytes"),
    "longer by a chunk": (body(CONTENT, b"x", **CHUNKED), "has more bytes"),
    "longer by its header": (body(CONTENT, **{"content-length": "10001"}), "has 10001 bytes"),
    "shorter by its header": (body(CONTENT, **{"content-length": "9999"}), "has 9999 bytes"),
}


@pytest.mark.parametrize(("answer", "text"), WRONG.values(), ids=WRONG)
def test_the_end_of_a_wrong_blob_is_never_given(registry, answer, text):
    registry.answers[WEIGHTS] = answer
    given = b""
    with pytest.raises(ArtifactDigestMismatch, match=text) as caught, registry.open().open("weights") as stream:  # noqa: PT012
        while piece := stream.read(1000):
            given += piece
    assert len(given) < len(CONTENT)
    assert WEIGHTS in caught.value.message
    assert "SHA-256 " + digest_of(b"9" + CONTENT[1:])[7:] not in caught.value.public.message


def test_a_blob_without_an_end_is_read_up_to_its_size(registry):
    given = []

    class Endless(httpx.SyncByteStream):
        def __iter__(self):
            for _ in itertools.count():
                given.append(1)
                yield b"x" * 1000

    registry.answers[WEIGHTS] = lambda _: httpx.Response(200, stream=Endless(), headers=CHUNKED)
    with pytest.raises(ArtifactDigestMismatch, match="more bytes"):
        registry.read()
    assert len(given) == 11


def test_an_empty_file_has_the_digest_of_nothing(registry):
    registry.put(image([layer(b"", "weights")]))
    assert registry.read() == b""
    registry.put(image([layer(b"x", "weights", size=0)]))
    with pytest.raises(ArtifactDigestMismatch):
        registry.read()


def test_a_blob_goes_on_at_the_byte_at_which_its_connection_broke(registry):
    cut = httpx.ReadError("x")

    def answer(request):
        if "range" not in request.headers:
            return httpx.Response(200, stream=Chunks(CONTENT[:4000], cut))
        usual = registry.usual(request)
        return httpx.Response(206, stream=Chunks(usual.content[:1000], cut), headers=usual.headers)

    registry.answers[WEIGHTS] = answer
    assert registry.read() == CONTENT
    starts = [each.headers.get("range") for each in registry.seen if "blobs" in each.url.path]
    assert starts == [None, *(f"bytes={start}-" for start in range(4000, 10000, 1000))]


def test_an_end_that_only_the_connection_marks_may_be_a_cut(registry):
    def answer(request):
        return (
            httpx.Response(200, stream=Chunks(CONTENT[:4000]))
            if "range" not in request.headers
            else registry.usual(request)
        )

    registry.answers[WEIGHTS] = answer
    assert registry.read() == CONTENT


@pytest.mark.parametrize(
    "again",
    [
        body(CONTENT),
        body(CONTENT[5:], status=206, **{"content-range": "bytes 5-9/10"}),
        body(status=416),
        body(status=503),
    ],
    ids=["from the start", "at another byte", "refused", "broken"],
)
def test_a_registry_that_does_not_continue_a_blob_is_unavailable(registry, again):
    first = body(CONTENT[:4000], httpx.ReadError("x"))
    registry.answers[WEIGHTS] = lambda request: (again if "range" in request.headers else first)(request)
    with pytest.raises(Unavailable):
        registry.read()


def test_a_registry_that_stays_away_is_asked_a_few_times(registry):
    def answer(request):
        if "range" in request.headers:
            raise httpx.ConnectError("[Errno 111] Connection refused")
        return httpx.Response(200, stream=Chunks(CONTENT[:4000], httpx.ReadError("x")))

    registry.answers[WEIGHTS] = answer
    with pytest.raises(Unavailable, match="refused, at byte 4000 of 10000"):
        registry.read()
    assert len([line for line in registry.lines if "blobs" in line]) == 4


def test_a_blob_that_comes_too_slowly_is_given_up_at_its_time_limit(registry, monkeypatch):
    clock = SimpleNamespace(now=1000.0)
    monkeypatch.setattr(oci_blob, "time", SimpleNamespace(monotonic=lambda: clock.now, sleep=time.sleep))

    class Drip(httpx.SyncByteStream):
        def __iter__(self):
            for _ in itertools.count():
                clock.now += 5.0
                yield b"x"

    registry.answers[WEIGHTS] = lambda _: httpx.Response(200, stream=Drip(), headers=CHUNKED)
    with pytest.raises(Unavailable, match=r"comes too slowly: at its time limit it was at byte 1. of 10000"):
        registry.read()
    assert clock.now < 1100.0


def test_a_blob_that_is_gone_or_packed_is_refused(registry):
    registry.blobs.clear()
    with pytest.raises(ArtifactMissing, match=f"has no {WEIGHTS}"):
        registry.read()
    registry.answers[WEIGHTS] = body(CONTENT, **{"content-encoding": "gzip"})
    with pytest.raises(Unavailable, match="packed content"):
        registry.read()


# Authorization


def credentials(**more):
    return {"credentials": {BASE: BASIC} | more}


def test_credentials_go_to_the_registry_for_which_they_are(registry):
    assert registry.read(**credentials()) == CONTENT
    assert set(authorizations(registry, HOST)) == {BASIC}
    registry.seen.clear()
    registry.read(credentials={"https://other.example.com": BASIC, f"{BASE}/other": BASIC})
    assert set(authorizations(registry, HOST)) == {None}


def ask_for_token(registry, realm, token="t0ken"):
    """Have the registry ask for a token of this realm; the realm of its own server gives it."""

    def guard(request):
        if request.headers.get("authorization") == f"Bearer {token}":
            return registry.usual(request)
        header = f'Bearer realm="{realm}",service="svc",scope="repository:victim/secret:pull,push"'
        return httpx.Response(401, headers={"www-authenticate": header})

    registry.answers["/token"] = lambda _: httpx.Response(200, json={"token": token, "expires_in": 300})
    registry.answers[""] = guard


@pytest.mark.parametrize("given", [{}, credentials()], ids=["anonymous", "basic"])
def test_a_token_of_the_registry_s_own_server_is_asked_for_once(registry, given):
    ask_for_token(registry, f"{BASE}/token")
    assert registry.read(**given) == CONTENT
    (asked,) = [each for each in registry.seen if each.url.path == "/token"]
    assert dict(asked.url.params) == {"service": "svc", "scope": f"repository:{NAME}:pull"}
    assert asked.headers.get("authorization") == (BASIC if given else None)
    registry.seen.clear()
    registry.watch(**given).list_since("")
    assert registry.lines[0] == "HEAD manifests/prod"
    assert authorizations(registry, HOST)[0] == "Bearer t0ken"


def test_a_token_is_not_used_with_other_credentials_or_after_its_time(registry):
    ask_for_token(registry, f"{BASE}/token")
    registry.answers["/token"] = lambda _: httpx.Response(200, json={"access_token": "t0ken", "expires_in": 1e-9})
    for given in ({}, {}, credentials()):
        registry.seen.clear()
        registry.watch(**given).list_since("")
        assert registry.lines[:3] == ["HEAD manifests/prod", "GET /token", "HEAD manifests/prod"]


@pytest.mark.parametrize("seconds", [10**400, 1e308, -1, "5", True, None], ids=lambda each: str(each)[:5])
def test_a_token_with_any_validity_is_used(registry, seconds):
    ask_for_token(registry, f"{BASE}/token")
    registry.answers["/token"] = lambda _: httpx.Response(200, json={"token": "t0ken", "expires_in": seconds})
    registry.watch().list_since("")
    assert registry.lines[:3] == ["HEAD manifests/prod", "GET /token", "HEAD manifests/prod"]


REALMS = [
    "https://evil.example.net/token",
    f"https://user@{HOST}/token",
    f"http://{HOST}/token",
    f"https://{HOST}:444/token",
    "https://auth.example.com.evil.example.net/token",
    "http://127.0.0.1/token",
    "file:///etc/passwd",
    "//evil.example.net/token",
    "",
]


@pytest.mark.parametrize("realm", REALMS)
def test_a_hostile_token_service_gets_neither_a_request_nor_credentials(registry, realm):
    ask_for_token(registry, realm)
    given = credentials() | {"urls": (BASE, "https://auth.example.com")}
    with pytest.raises(Unavailable, match="names as its token service") as caught:
        registry.watch(**given).list_since("")
    assert SECRET not in str(caught.value)
    assert {each.url.path for each in registry.seen} == {f"/v2/{NAME}/manifests/prod"}


@pytest.mark.parametrize("reach", Reach)
def test_an_allowed_token_service_gets_only_the_credentials_that_are_for_it(registry, reach):
    ask_for_token(registry, "https://auth.example.com/token")
    registry.elsewhere = lambda _: httpx.Response(200, json={"token": "t0ken"})
    given = credentials() | {"urls": (BASE, "https://auth.example.com"), "reach": reach}
    registry.watch(**given).list_since("")
    assert authorizations(registry, "auth.example.com") == [None]
    registry.connections.tokens.clear()
    registry.watch(**given | credentials(**{"https://auth.example.com": "Basic b3RoZXI="})).list_since("")
    assert authorizations(registry, "auth.example.com") == [None, "Basic b3RoZXI="]


def test_one_stream_s_refused_token_service_is_not_that_of_another(registry):
    ask_for_token(registry, "https://auth.example.com/token")
    registry.elsewhere = lambda _: httpx.Response(200, json={"token": "t0ken"})
    first, second = registry.watch_all(ReadAccess(urls=(BASE,)), ReadAccess(urls=(BASE, "https://auth.example.com")))
    with pytest.raises(Unavailable, match="IPNEXT_SOURCE_URLS"):
        first.list_since("")
    assert len(second.list_since("").versions) == 1


@pytest.mark.parametrize(
    ("answer", "text"),
    [
        (httpx.Response(401), "answers 401; its credentials are in IPNEXT_SOURCE_CREDENTIALS_FILE"),
        (httpx.Response(307, headers={"location": "https://evil.example.net"}), "answers 307"),
        (httpx.Response(200, content=b"[" * 1000), "is not JSON"),
        (httpx.Response(200, content=b"[" * 60000), "commas and brackets"),
        (httpx.Response(200, content=b" " * 70000), "is too large"),
        (httpx.Response(200, json=[]), "has no token"),
        (httpx.Response(200, json={"token": 5}), "has no token"),
        (httpx.Response(200, json={"token": "a\r\nHost: evil"}), "has no token"),
        (httpx.Response(200, json={"token": "wrong"}), "refuses the credentials .401."),
    ],
)
def test_a_token_service_that_gives_no_token_is_described(registry, answer, text):
    ask_for_token(registry, f"{BASE}/token")
    registry.answers["/token"] = lambda _: answer
    with pytest.raises(Unavailable, match=text) as caught:
        registry.watch(**credentials()).list_since("")
    assert SECRET not in str(caught.value)


def test_a_refused_bearer_credential_is_not_offered_to_a_token_service(registry):
    ask_for_token(registry, f"{BASE}/token")
    with pytest.raises(Unavailable, match=r"refuses the credentials .401..*IPNEXT_SOURCE_CREDENTIALS_FILE") as caught:
        registry.watch(credentials={BASE: "Bearer s3cret"}).list_since("")
    assert "s3cret" not in str(caught.value)
    assert registry.lines == ["HEAD manifests/prod"]


def test_cookies_are_not_kept(registry):
    registry.answers["/prod"] = lambda request: httpx.Response(
        200, headers={**registry.usual(request).headers, "set-cookie": f"session=1; Domain={HOST}; Path=/"}
    )
    registry.watch().list_since("")
    assert len(registry.seen) > 1
    assert not [each for each in registry.seen if "cookie" in each.headers]


# Redirects


def redirect(registry, target, **answer):
    registry.answers[WEIGHTS] = lambda _: httpx.Response(307, headers={"location": target})
    registry.elsewhere = lambda _: httpx.Response(**{"status_code": 200, "content": CONTENT} | answer)


@pytest.mark.parametrize(
    ("target", "access"),
    [
        (f"{STORAGE}/x?signature=s3cret", {"urls": (BASE, STORAGE)}),
        (f"{STORAGE}/x?signature=/../s3cret", {"urls": (BASE, STORAGE)}),
        (f"{STORAGE}/x?signature=s3cret", {"reach": Reach.ANY}),
    ],
)
def test_one_redirect_to_an_allowed_server_is_followed_without_credentials(registry, target, access):
    redirect(registry, target)
    given = credentials(**{STORAGE: BASIC}) | access
    assert registry.read(**given) == CONTENT
    assert authorizations(registry, "storage.example.com") == [None]
    assert str(registry.seen[-1].url) == target


def test_a_redirect_within_the_registry_s_server_is_followed(registry):
    registry.answers[WEIGHTS] = lambda _: httpx.Response(307, headers={"location": "/storage/x"})
    registry.answers["/storage/x"] = lambda _: httpx.Response(200, content=CONTENT)
    assert registry.read(**credentials()) == CONTENT
    assert registry.seen[-1].headers.get("authorization") is None


TARGETS = [
    "https://other.example.com/x",
    "http://storage.example.com/bucket/x",
    "https://user:pw@storage.example.com/bucket/x",
    "https://storage.example.com/bucket/../other",
    "https://storage.example.com/bucket/%2e%2e/other",
    "https://storage.example.com/bucket%2fx",
    "https://storage.example.com:444/bucket/x",
    "https://storage.example.com/bucketeer",
    "http://127.0.0.1/x",
    "http://169.254.169.254/latest/meta-data",
    f"http://{HOST}/x",
    "ftp://storage.example.com/bucket/x",
    "https://[/x",
    "",
]


@pytest.mark.parametrize("target", TARGETS)
def test_no_other_redirect_is_followed(registry, target):
    redirect(registry, target)
    with pytest.raises(Unavailable, match="redirects a blob to") as caught:
        registry.read(urls=(BASE, STORAGE))
    assert registry.lines[-1] == f"GET blobs/{WEIGHTS}"
    assert "pw@" not in str(caught.value)


@pytest.mark.parametrize(
    "target",
    [
        "http://storage.example.com/x",
        "http://127.0.0.1/x",
        "ftp://storage.example.com/x",
        "https://u@storage.example.com/",
    ],
)
def test_no_access_allows_a_redirect_without_encryption_or_with_a_user(registry, target):
    redirect(registry, target)
    with pytest.raises(Unavailable, match="redirects a blob to"):
        registry.read(reach=Reach.ANY)
    assert registry.lines[-1] == f"GET blobs/{WEIGHTS}"


def test_a_loopback_registry_may_redirect_to_an_allowed_loopback_storage():
    def answer(request):
        if request.url.port == 5000:
            return httpx.Response(307, headers={"location": "http://127.0.0.1:9000/bucket/x"})
        return httpx.Response(200, stream=Chunks(CONTENT))

    file = ArtifactFile(path="weights", sha256=WEIGHTS[7:], size_bytes=len(CONTENT))
    place, connections = parse_repository("localhost:5000/m"), Connections(httpx.MockTransport(answer))
    allowed = Repository(place, ReadAccess(urls=("http://127.0.0.1:9000/bucket",)), connections)
    with oci_blob.open_blob(allowed, file) as stream:
        assert stream.read() == CONTENT
    with pytest.raises(Unavailable, match="IPNEXT_SOURCE_URLS"):
        oci_blob.open_blob(Repository(place, ReadAccess(urls=("http://localhost:5000",)), connections), file)


@pytest.mark.parametrize(
    ("answer", "text"),
    [
        ({"status_code": 307, "headers": {"location": f"{STORAGE}/y"}}, "redirects it once more"),
        ({"status_code": 403}, "answers 403"),
        ({"status_code": 404}, "answers 404"),
    ],
)
def test_a_storage_that_gives_no_blob_is_described_without_its_signature(registry, answer, text):
    redirect(registry, f"{STORAGE}/x?signature=s3cret", **answer)
    with pytest.raises(Unavailable, match=text) as caught:
        registry.read(urls=(BASE, STORAGE))
    assert "s3cret" not in str(caught.value)
    assert len([each for each in registry.seen if each.url.host == "storage.example.com"]) == 1


def test_no_error_has_credentials(registry):
    registry.answers["/prod"] = lambda _: httpx.Response(403)
    for authorization in (BASIC, "Bearer s3cret", " Bearer s3cret "):
        with pytest.raises(IPnextError) as caught:
            registry.watch(credentials={BASE: authorization}).list_since("")
        assert authorization.split()[1] not in f"{caught.value!r} {caught.value.__cause__!r}"
