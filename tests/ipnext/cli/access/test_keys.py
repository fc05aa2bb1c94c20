"""API keys and identities on the command line."""

import json
import re

import pytest
from typer.testing import CliRunner

from ipnext.cli import app
from ipnext.login.credentials import note_key_file, write_private


@pytest.fixture
def run(live, monkeypatch, tmp_path):
    """Run a command against a live server as its administrator, with a file of credentials of its own."""
    monkeypatch.setenv("IPNEXT_API_URL", live.url)
    monkeypatch.setenv("IPNEXT_CREDENTIALS_FILE", str(tmp_path / "mine" / "credentials.json"))

    def run(*arguments, status=0, **options):
        result = CliRunner().invoke(app, [str(a) for a in arguments], **options)
        assert result.exit_code == status, result.output
        assert "Traceback" not in result.output
        return result

    return run


def test_a_key_is_created_with_its_id_and_text_and_works_by_its_role(run, monkeypatch):
    made = json.loads(run("keys", "create", "ci", "--role", "publisher", "--owner", "search", "-o", "json").stdout)
    assert (made["name"], made["role"], made["owner"]) == ("ci", "publisher", "search")
    assert made["key"].startswith(f"ipnext_{made['id']}.")
    monkeypatch.setenv("IPNEXT_API_KEY", made["key"])
    assert run("whoami").stdout == "key ci: publisher of owner search\n"
    refused = run("keys", "list", status=2)
    assert "policy 'admins-do-everything' decides" in refused.stderr


def test_keys_are_listed_without_secrets_and_a_revoked_one_is_refused(run, monkeypatch):
    text = run("keys", "create", "ci", "--role", "viewer", "--region", "eu", "--expires-in", "30d").stdout.strip()
    listed = run("keys", "list").stdout
    assert re.search(r"ci +viewer +region eu +key admin +.* +never +until 20", listed)
    assert text.partition(".")[2] not in listed
    revoked = run("keys", "revoke", text)
    assert text.partition(".")[2] not in revoked.output, "the whole text is a natural slip"
    assert "(ci) is revoked" in revoked.stdout
    monkeypatch.setenv("IPNEXT_API_KEY", text)
    assert "was revoked" in run("whoami", status=2).stderr


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("create", "Bad Name", "--role", "viewer"), "name"),
        (("create", "ci", "--role", "viewer", "--owner", "a b"), "owner"),
        (("create", "ci", "--role", "viewer", "--expires-in", "soon"), "--expires-in: 'soon'"),
        (("create", "ci", "--role", "viewer", "--owner", "a", "--region", "eu"), "give owner or region, not both"),
        (("revoke", "nonsense"), "16 letters and digits"),
        (("revoke", "a" * 16), "no key has the id"),
    ],
)
def test_what_is_no_key_is_one_line_and_bad_input(run, arguments, said):
    refused = run("keys", *arguments, status=2)
    assert said in refused.stderr
    assert len(refused.stderr.strip().splitlines()) == 1


def test_a_key_is_kept_for_the_address_until_it_is_forgotten(run, live, monkeypatch):
    key = live.rooms.admin_key
    monkeypatch.delenv("IPNEXT_API_KEY")
    assert "needs a credential" in run("whoami", status=2).stderr
    said = run("login", input=key + "\n")
    assert key not in said.output
    assert run("whoami").stdout == "key admin: admin of everything\n"
    run("logout")
    assert "needs a credential" in run("whoami", status=2).stderr


def test_a_login_is_used_instead_of_the_key_of_a_platform_until_logout(run, live, monkeypatch, tmp_path):
    other = json.loads(run("keys", "create", "ci", "--role", "viewer", "-o", "json").stdout)["key"]
    monkeypatch.delenv("IPNEXT_API_KEY")
    key_file = tmp_path / "admin-key"
    write_private(key_file, live.rooms.admin_key)
    note_key_file(live.url, key_file, tmp_path / "mine" / "credentials.json")
    said = run("login", "--key", input=other + "\n").stderr
    assert "this login is used instead of the key of `ipnext dev`, until `ipnext logout`" in said
    assert run("whoami").stdout == "key ci: viewer of everything\n"
    assert "the key of `ipnext dev` is used again" in run("logout").stderr
    said = run("logout").stderr
    assert f"the key of `ipnext dev` is still in {key_file}; `ipnext login --key < {key_file}` uses it again" in said
    assert "ipnext dev" not in run("logout").stderr
    assert "ipnext dev" not in run("login", "--key", input=key_file.read_text()).stderr
    assert run("whoami").stdout == "key admin: admin of everything\n"


def test_a_link_logs_one_browser_in(run, live):
    link = run("page").stdout.strip()
    assert re.fullmatch(rf"{re.escape(live.url)}/#ticket=ipnext_[a-z2-7]{{16}}\.[A-Za-z0-9_-]{{43}}", link)
