"""Credentials of a user: where they lie, who may read them, where they are sent."""

import json
import stat
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest

from ipnext import errors
from ipnext.client import Client
from ipnext.credentials import (
    find_credential,
    forget_credential,
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


def sent(url=URL, **options):
    """The Authorization that a client of this address sends."""
    seen = []

    def answer(request):
        seen.append(request.headers.get("authorization"))
        return httpx.Response(200, json={"items": []})

    with Client(url, transport=httpx.MockTransport(answer), **options) as client:
        list(client.models())
    return seen[0]


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
    assert find_credential(URL, file) == "secret"
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
    assert not forget_credential(URL, file, key_file=tmp_path / "two")
    assert forget_credential(URL, file, key_file=tmp_path / "one")
    assert json.loads(file.read_text()) == {"https://api.example.com:443": {"credential": "kept"}}
    assert not forget_credential(URL, file)


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


@pytest.mark.usefixtures("subprocesses")
def test_a_key_of_a_platform_that_has_gone_is_not_sent_to_what_listens_there_now(file, tmp_path):
    key_file = tmp_path / "admin-key"
    write_private(key_file, "secret")
    note_key_file(URL, key_file, file)
    assert sent() == "Bearer secret"
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    note_credential(URL, {"key_file": str(key_file), "pid": gone.pid}, file)
    assert sent() is None


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
