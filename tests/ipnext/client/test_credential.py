"""Credentials of a user: where they lie, who may read them, where they are sent."""

import json
import os
import stat
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import httpx
import pytest

from ipnext import errors
from ipnext.access.keys import digest_of_secret, draw_key, parse_key
from ipnext.access.proof import is_proof, make_proof, proof_key_of
from ipnext.client import Client, credential
from ipnext.client.credential import PROVED_SECONDS
from ipnext.login.credentials import (
    find_credential,
    find_entry,
    forget_credential,
    forget_key_file,
    note_credential,
    note_key_file,
    origin_of,
    read_key,
    write_private,
)

URL = "http://127.0.0.1:8700"


@pytest.fixture
def file(tmp_path, monkeypatch):
    file = tmp_path / "config" / "credentials.json"
    monkeypatch.setenv("IPNEXT_CREDENTIALS_FILE", str(file))
    monkeypatch.delenv("IPNEXT_API_KEY", raising=False)
    return file


class Listener:
    """What listens at an address: an API that knows some keys, or a program that knows none."""

    def __init__(self, *keys, port=8700):
        self.keys = {parse_key(key).id: parse_key(key) for key in keys}
        self.port = port
        self.seen, self.authorizations = [], []

    def __call__(self, request):
        self.seen.append(f"{request.url}{dict(request.headers)}")
        if request.url.path != "/v1/proof":
            self.authorizations.append(request.headers.get("authorization"))
            return httpx.Response(200, json={"items": []})
        known = self.keys.get(request.url.params["key"])
        proof_key = draw_key().proof_key if known is None else proof_key_of(known.secret)
        proof = make_proof(proof_key, nonce=request.url.params["nonce"], port=self.port)
        return httpx.Response(200, json={"port": self.port, "proof": proof})


def sent(url=URL, listener=None, **options):
    """The Authorization that a client of this address sends."""
    listener = listener or Listener()
    with Client(url, transport=httpx.MockTransport(listener), **options) as client:
        list(client.models())
    return listener.authorizations[0]


def test_a_key_is_given_or_of_the_environment_or_what_was_written_down_in_this_order(file, monkeypatch):
    assert sent() is None
    note_credential(URL, {"credential": "written"}, file)
    assert sent() == "Bearer written"
    monkeypatch.setenv("IPNEXT_API_KEY", "named")
    assert sent() == "Bearer named"
    assert sent(api_key="given") == "Bearer given"


def test_a_credential_goes_to_the_address_that_it_was_written_down_for_only(file):
    note_credential(URL, {"credential": "mine"}, file)
    assert sent("http://localhost:8700/") == "Bearer mine"
    for other in ("http://127.0.0.1:8701", "https://127.0.0.1:8700", "http://127.0.0.2:8700"):
        assert sent(other) is None, other


def test_a_credential_goes_to_no_other_machine_in_clear_text(file, monkeypatch):
    for url in ("http://api.example.com", "http://10.0.0.1:8700", "http://127.0.0.1.example.com:8700"):
        with pytest.raises(errors.InvalidInput, match="clear text"):
            sent(url, api_key="mine")
    assert sent("https://api.example.com", api_key="mine") == "Bearer mine"
    monkeypatch.setenv("IPNEXT_INSECURE_TRANSPORT", "true")
    assert sent("http://api.example.com", api_key="mine") == "Bearer mine"


def test_a_key_that_no_header_carries_is_refused_and_not_repeated(file):
    for key in ("a key", "kéy", "key\nX-Evil: 1"):
        with pytest.raises(errors.InvalidInput, match="api_key") as refused:
            sent(api_key=key)
        assert key not in str(refused.value)


def test_files_with_credentials_are_readable_by_their_owner_only(file, tmp_path):
    key_file = tmp_path / "admin-key"
    write_private(key_file, "secret\n")
    note_key_file(URL, key_file, file)
    for each in (key_file, file):
        assert stat.S_IMODE(each.stat().st_mode) == 0o600
    assert stat.S_IMODE(file.parent.stat().st_mode) == 0o700
    assert find_credential(URL, file).text == "secret"
    key_file.chmod(0o640)
    with pytest.raises(errors.InvalidInput, match="read by others"):
        read_key(key_file)


def test_a_key_file_that_has_gone_counts_as_none_and_a_broken_file_is_named(file, tmp_path):
    note_key_file(URL, tmp_path / "gone", file)
    assert find_credential(URL, file) is None
    file.write_text("{")
    with pytest.raises(errors.InvalidInput, match=r"credentials\.json is not JSON"):
        find_credential(URL, file)


def test_forgetting_leaves_the_others_and_what_another_platform_has_written_down_since(file, tmp_path):
    note_key_file(URL, tmp_path / "one", file)
    note_credential("https://api.example.com", {"credential": "kept"}, file)
    forget_key_file(URL, tmp_path / "two", file)
    assert find_entry(URL, file)["key_file"] == str(tmp_path / "one")
    forget_key_file(URL, tmp_path / "one", file)
    assert json.loads(file.read_text()) == {"https://api.example.com:443": {"credential": "kept"}}
    assert forget_credential(URL, file) is None


def test_a_login_goes_before_the_key_of_a_platform_until_it_is_forgotten(file, tmp_path):
    key_file = tmp_path / "admin-key"
    write_private(key_file, "secret\n")
    note_key_file(URL, key_file, file)
    note_credential(URL, {"credential": "mine"}, file)
    assert find_credential(URL, file).text == "mine"
    assert forget_credential(URL, file) == {"credential": "mine"}
    assert find_credential(URL, file).text == "secret"
    assert forget_credential(URL, file)["key_file"] == str(key_file)
    assert find_credential(URL, file) is None


def test_a_platform_that_starts_ends_a_login_at_its_address_and_one_that_ends_leaves_it(file, tmp_path):
    note_credential(URL, {"credential": "of a former platform"}, file)
    note_key_file(URL, tmp_path / "one", file)
    assert "key_file" in find_entry(URL, file)
    note_credential(URL, {"credential": "mine"}, file)
    forget_key_file(URL, tmp_path / "one", file)
    assert list(json.loads(file.read_text()).values()) == [{"credential": "mine"}]


def test_many_processes_that_write_at_once_lose_nothing(file):
    urls = [f"http://127.0.0.1:{port}" for port in range(9000, 9032)]
    with ThreadPoolExecutor(8) as threads:
        list(threads.map(lambda url: note_credential(url, {"credential": url}, file), urls))
    assert set(json.loads(file.read_text())) == set(urls)


@pytest.mark.parametrize(
    ("url", "origin"),
    [
        ("http://localhost:8700/x", "http://127.0.0.1:8700"),
        ("https://API.example.com", "https://api.example.com:443"),
        ("http://[::1]:1/", "http://::1:1"),
    ],
)
def test_an_origin_is_scheme_host_and_port(url, origin):
    assert origin_of(url) == origin


@pytest.fixture
def key(file, tmp_path):
    """The administrator's key of a platform at URL that this process runs."""
    text, key_file = draw_key().text, tmp_path / "admin-key"
    write_private(key_file, text)
    note_key_file(URL, key_file, file)
    return text


OF_PLATFORM = f"ipnext dev {URL}"
"""Name of the entry of a platform at URL."""


def entries(file):
    return json.loads(file.read_text())


def change(file, **fields):
    """Change the platform's entry; a field that is None goes."""
    found = entries(file)
    changed = {**found[OF_PLATFORM], **fields}
    write_private(file, json.dumps({**found, OF_PLATFORM: {k: v for k, v in changed.items() if v is not None}}))


def test_the_key_of_a_platform_that_runs_is_sent_to_it_once_it_has_proved_itself(key):
    platform = Listener(key)
    assert sent(listener=platform) == f"Bearer {key}"
    assert len(platform.seen) == 2
    assert parse_key(key).secret not in platform.seen[0]


@pytest.mark.parametrize("port", [8700, 8701])
def test_no_key_is_sent_to_a_program_that_listens_in_the_place_of_the_platform(key, port):
    foreign = (
        Listener(port=port) if port == 8700 else Listener(key, port=port)
    )  # the other one asks the platform for proofs
    with pytest.raises(errors.Unauthenticated, match="does not prove that it is the platform"):
        sent(listener=foreign)
    assert foreign.authorizations == []
    assert parse_key(key).secret not in "".join(foreign.seen)


@pytest.mark.parametrize(
    "answer", [httpx.Response(404), httpx.Response(200, text="<html>"), httpx.Response(200, json={})]
)
def test_no_key_is_sent_to_what_knows_no_proofs(key, answer):
    seen = []

    def foreign(request):
        seen.append(str(request.headers))
        return answer

    with Client(URL, transport=httpx.MockTransport(foreign)) as client, pytest.raises(errors.Unauthenticated):
        client.who_am_i()
    assert len(seen) == 1
    assert parse_key(key).secret not in seen[0]


def test_a_proof_counts_for_a_moment_and_not_for_another_key(key, file, tmp_path, monkeypatch):
    now = [1000.0]
    monkeypatch.setattr("ipnext.client.credential.time", SimpleNamespace(monotonic=lambda: now[0]))
    following = draw_key().text
    platform = Listener(key, following)
    with Client(URL, transport=httpx.MockTransport(platform)) as client:
        for wait, proofs in ((0, 1), (PROVED_SECONDS - 1, 1), (2, 2)):
            now[0] += wait
            list(client.models())
            assert len(platform.seen) - len(platform.authorizations) == proofs
        write_private(tmp_path / "admin-key", following)
        list(client.models())
        assert len(platform.seen) - len(platform.authorizations) == 3


def test_a_key_of_a_login_is_sent_to_what_proves_itself_whatever_port_that_has(file):
    key = draw_key().text
    note_credential(URL, {"credential": key}, file)
    assert sent(listener=Listener(key, port=9999)) == f"Bearer {key}", "through a tunnel"
    with pytest.raises(errors.Unauthenticated):
        sent(listener=Listener())


def test_a_region_can_not_make_the_proof_from_what_it_has():
    """It has the digest by which it checks the key."""
    key = parse_key(draw_key().text)
    digest, nonce = digest_of_secret(key.secret), "n" * 32
    for known in (digest, proof_key_of(digest)):
        assert not is_proof(make_proof(known, nonce=nonce, port=1), key.secret, nonce=nonce, port=1)
    assert is_proof(make_proof(proof_key_of(key.secret), nonce=nonce, port=1), key.secret, nonce=nonce, port=1)


TOKEN = "eyJhbGciOiJSUzI1NiJ9.e30.c2ln"


@pytest.mark.parametrize("users", [{4242}, {os.getuid(), 4242}, {0, 4242}])
def test_no_token_of_a_login_is_sent_to_a_program_of_another_user(file, monkeypatch, users):
    asked = []
    monkeypatch.setattr(credential, "listening_users", lambda *where: asked.append(where) or frozenset(users))
    note_credential(URL, {"credential": TOKEN}, file)
    listener = Listener()
    for url in (URL, "http://localhost:8700"):
        with pytest.raises(errors.Unauthenticated, match=r"another user \(id 4242\) listens at http://127.0.0.1:8700"):
            sent(url, listener)
    assert (listener.seen, set(asked)) == ([], {("127.0.0.1", 8700)})
    assert sent(api_key=TOKEN) == f"Bearer {TOKEN}", "who names it names the address, too"
    monkeypatch.setenv("IPNEXT_INSECURE_TRANSPORT", "true")
    assert sent() == f"Bearer {TOKEN}"


@pytest.mark.parametrize("users", [{0}, {os.getuid()}, set(), None])
def test_a_token_of_a_login_is_sent_to_programs_of_this_user_and_of_root(file, monkeypatch, users):
    monkeypatch.setattr(credential, "listening_users", lambda *_: users)
    note_credential(URL, {"credential": TOKEN}, file)
    assert sent() == f"Bearer {TOKEN}"


def test_over_https_no_listener_is_looked_for(file, monkeypatch):
    monkeypatch.setattr(credential, "listening_users", lambda *_: frozenset({4242}))
    note_credential("https://127.0.0.1:8700", {"credential": TOKEN}, file)
    assert sent("https://127.0.0.1:8700") == f"Bearer {TOKEN}"


def test_over_https_the_certificate_proves_the_platform(file):
    key = draw_key().text
    note_credential("https://api.example.com", {"credential": key}, file)
    assert sent("https://api.example.com", listener=Listener()) == f"Bearer {key}"


@pytest.mark.usefixtures("subprocesses")
def test_the_entry_of_a_platform_that_was_killed_is_struck_off_by_the_next_look(key, file, tmp_path):
    note_credential("https://api.example.com", {"credential": "kept"}, file)
    with subprocess.Popen([sys.executable, "-c", KILLED, str(tmp_path / "admin-key"), str(file)]) as platform:
        platform.wait()
    assert "ipnext dev http://127.0.0.1:9000" in entries(file)
    assert find_credential("http://127.0.0.1:9001", file) is None
    assert find_credential("http://127.0.0.1:9000", file) is None
    assert set(entries(file)) == {OF_PLATFORM, "https://api.example.com:443"}


KILLED = """
import os, signal, sys
from pathlib import Path
from ipnext.login.credentials import note_key_file
note_key_file("http://127.0.0.1:9000", Path(sys.argv[1]), Path(sys.argv[2]))
os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.usefixtures("subprocesses")
def test_a_platform_that_starts_strikes_off_those_that_were_killed(key, file, tmp_path):
    with subprocess.Popen([sys.executable, "-c", KILLED, str(tmp_path / "admin-key"), str(file)]) as platform:
        platform.wait()
    note_key_file("http://127.0.0.1:9002", tmp_path / "admin-key", file)
    assert set(entries(file)) == {OF_PLATFORM, "ipnext dev http://127.0.0.1:9002"}


@pytest.mark.parametrize(
    ("fields", "is_kept"),
    [
        ({"started": 1}, False),  # another process has its id
        ({"boot": "another"}, False),
        ({"machine": "another", "pid": 1}, True),
        ({"processes": "pid:[1]"}, True),  # in another container
    ],
)
def test_an_entry_is_struck_off_only_if_its_process_has_ended_for_sure_and_used_only_if_it_runs(
    key, file, fields, is_kept
):
    change(file, **fields)
    assert sent() is None
    assert (OF_PLATFORM in entries(file)) is is_kept


def test_an_entry_that_can_not_be_struck_off_is_not_used_either(key, file):
    change(file, started=1)
    lock = file.parent / f".{file.name}.lock"
    lock.unlink()
    lock.mkdir()
    assert sent() is None
    assert OF_PLATFORM in entries(file)


def test_a_place_that_can_not_be_written_and_one_that_others_read_are_named(file, tmp_path):
    (tmp_path / "a-file").write_text("")
    with pytest.raises(errors.InvalidInput, match=r"credentials_file .* can't be written"):
        note_credential(URL, {"credential": "x"}, tmp_path / "a-file" / "credentials.json")
    note_credential(URL, {"credential": "x"}, file)
    file.chmod(0o644)
    with pytest.raises(errors.InvalidInput, match="read by others"):
        find_credential(URL, file)


def test_an_empty_key_in_the_environment_is_no_wish_for_the_administrators(file, monkeypatch):
    note_credential(URL, {"credential": "administrator"}, file)
    monkeypatch.setenv("IPNEXT_API_KEY", "")
    with pytest.raises(errors.InvalidInput, match="is set and empty"):
        sent()


def test_a_name_of_this_machine_leads_to_the_address_that_the_platform_listens_on(key):
    """`localhost` may be ::1 first, where another program may pass the question for a proof on to the platform."""
    platform = Listener(key)
    asked = []

    def answer(request):
        asked.append(request.url.host)
        return platform(request)

    with Client("http://localhost:8700", transport=httpx.MockTransport(answer)) as client:
        list(client.models())
    assert platform.authorizations == [f"Bearer {key}"]
    assert asked == ["127.0.0.1", "127.0.0.1"]


@pytest.mark.parametrize(
    ("url", "host"), [("http://localhost:8700", "127.0.0.1"), ("https://localhost:8700", "localhost")]
)
@pytest.mark.parametrize("given", [True, False])
def test_a_token_in_clear_text_goes_to_one_loopback_address(file, url, host, given):
    if not given:
        note_credential(url, {"credential": "a.token.of-a-person"}, file)
    listener, asked = Listener(), []

    def answer(request):
        asked.append(request.url.host)
        return listener(request)

    key = "a.token.of-a-person" if given else None
    with Client(url, api_key=key, transport=httpx.MockTransport(answer)) as client:
        list(client.models())
    assert (asked, listener.authorizations) == ([host], ["Bearer a.token.of-a-person"])
