"""`ipnext login`, `logout` and `roles` at a terminal, against a live API and a real identity provider."""

import json
import re
import time

import pytest
from typer.testing import CliRunner

from ipnext.cli import app
from ipnext.cli.access import identity
from ipnext.login import device_flow
from ipnext.login.credentials import find_entry, note_credential
from ipnext.model.access.rights import Role
from tests.identity_provider import AUDIENCE, CLIENT_ID


@pytest.fixture(autouse=True)
def _quickly(monkeypatch):
    """Polls follow each other at once; test_device_flow.py looks at how long they wait."""
    monkeypatch.setattr(device_flow, "LEAST_INTERVAL_SECONDS", 0.0)
    monkeypatch.setattr(device_flow, "INTERVAL_SECONDS", 0.0)


@pytest.fixture
def settings(rooms, provider):
    """The API of `live` has an identity provider."""
    changes = {"oidc_issuer": provider.issuer, "oidc_audience": AUDIENCE, "oidc_client_id": CLIENT_ID}
    rooms.settings = rooms.settings.model_copy(update=changes)
    document = {"device_code": "the-device-code", "user_code": "WDJB-MJHT", "verification_uri": "https://id.example/a"}
    provider.replaced["device"] = (200, {}, json.dumps(document | {"interval": 0}).encode())


@pytest.fixture
def file(tmp_path):
    return tmp_path / "written" / "credentials.json"


@pytest.fixture
def run(live, file, monkeypatch):
    """Run a command as a user without a key."""
    monkeypatch.delenv("IPNEXT_API_KEY")
    monkeypatch.setenv("IPNEXT_API_URL", live.url)
    monkeypatch.setenv("IPNEXT_CREDENTIALS_FILE", str(file))

    def run(*arguments, status=0, key=None, text=""):
        result = CliRunner(env={"IPNEXT_API_KEY": key}).invoke(app, arguments, input=text)
        assert result.exit_code == status, result.output
        return result

    return run


@pytest.fixture
def admin(run, live):
    """Run a command as the administrator."""
    return lambda *arguments, **options: run(*arguments, key=live.rooms.admin_key, **options)


@pytest.mark.usefixtures("settings")
def test_a_person_logs_in_works_and_logs_out(run, admin, live, file, provider):
    granted = admin("roles", "grant", "group:search-team", "--role", "viewer").stdout
    assert re.fullmatch(r"group:search-team is viewer of everything: binding [a-z2-7]{16}\n", granted)
    provider.device_answers = ["authorization_pending"]
    told = run("login", "--yes").stderr
    assert f"at {provider.issuer}, open https://id.example/a and enter the code WDJB-MJHT" in told
    assert f"logged in to {live.url} as ann: viewer of everything" in told
    entry = find_entry(live.url, file)
    assert entry["refresh_token"] in provider.refresh_tokens
    assert entry["credential"] not in told
    assert file.stat().st_mode & 0o777 == 0o600
    assert run("whoami").stdout == "user ann: viewer of everything\n"
    assert run("get", "models", "-o", "json").stdout == "[]\n"
    assert run("logout").stderr == f"forgot the credential for {live.url}\n"
    assert provider.revoked == [entry["refresh_token"]]
    assert "IPNEXT_API_KEY" in run("whoami", status=2).stderr


@pytest.mark.usefixtures("settings")
def test_a_login_that_is_about_to_end_is_renewed_by_the_next_command(run, admin, live, file, provider):
    admin("roles", "grant", "user:ann", "--role", "viewer")
    run("login", "--yes")
    entry = find_entry(live.url, file)
    note_credential(live.url, {**entry, "renew_at": time.time() - 1}, file)
    run("whoami")
    renewed = find_entry(live.url, file)
    assert renewed["credential"] != entry["credential"]
    assert renewed["renew_at"] > time.time()


@pytest.mark.usefixtures("settings")
def test_a_login_that_has_ended_says_to_log_in_which_then_works(run, admin, live, file, provider):
    admin("roles", "grant", "user:ann", "--role", "viewer")
    run("login", "--yes")
    provider.refresh_tokens.clear()
    note_credential(live.url, {**find_entry(live.url, file), "renew_at": 0, "expires_at": 0}, file)
    assert "`ipnext login` logs in again" in run("whoami", status=2).stderr
    run("login")
    assert run("whoami").stdout == "user ann: viewer of everything\n"


@pytest.mark.usefixtures("settings")
def test_a_person_without_a_role_is_logged_in_and_told_so(run, admin, live):
    told = run("login", "--yes").stderr
    assert f"logged in to {live.url} without a role: user ann" in told
    assert "has no role here" in run("get", "models", status=2).stderr
    admin("roles", "grant", "user:ann", "--role", "publisher", "--owner", "search")
    assert run("whoami").stdout == "user ann: publisher of owner search\n"


@pytest.mark.usefixtures("settings")
@pytest.mark.parametrize(
    ("break_it", "words", "status"),
    [
        (lambda p: p.device_answers.append("access_denied"), "access_denied", 2),
        (lambda p: p.claims.update(aud="another"), "aud", 2),
        (lambda p: setattr(p, "away", True), "does not answer", 1),
    ],
)
def test_a_login_that_fails_writes_nothing_down(run, live, file, provider, break_it, words, status):
    break_it(provider)
    assert words in run("login", "--yes", status=status).stderr
    assert find_entry(live.url, file) is None


@pytest.fixture
def name_audience(monkeypatch):
    """Have the API name another audience from now on."""

    def name(audience):
        options = identity.Client.login_options
        monkeypatch.setattr(
            identity.Client, "login_options", lambda client: options(client).model_copy(update={"audience": audience})
        )

    return name


@pytest.mark.usefixtures("settings")
def test_the_first_login_shows_what_the_api_names_and_asks(run, live, file, provider, monkeypatch):
    asked = []
    monkeypatch.setattr(identity, "_given_key", lambda **_: None)
    monkeypatch.setattr(identity, "_is_terminal", lambda: True)
    monkeypatch.setattr(identity.typer, "confirm", lambda text, **_: asked.append(text))
    told = run("login", status=2).stderr
    for word in (live.url, provider.issuer, CLIENT_ID, AUDIENCE):
        assert word in told
    assert len(asked) == 1
    assert "were not agreed to" in told
    assert find_entry(live.url, file) is None
    assert not any("device" in str(each) for each in provider.asked)

    monkeypatch.setattr(identity.typer, "confirm", lambda *_, **__: True)
    assert f"logged in to {live.url}" in run("login").stderr


@pytest.mark.usefixtures("settings")
def test_a_script_agrees_by_an_option(run, live, file):
    told = run("login", status=2).stderr
    assert "`ipnext login --yes`" in told
    assert AUDIENCE in told
    assert find_entry(live.url, file) is None
    run("login", "--yes")
    assert find_entry(live.url, file)["audience"] == AUDIENCE


@pytest.mark.usefixtures("settings")
@pytest.mark.parametrize("options", [(), ("--yes",)])
def test_a_later_login_with_other_terms_is_refused_with_what_changed(run, live, file, name_audience, options):
    run("login", "--yes")
    assert "names for logins" not in run("login").stderr, "the same terms are not asked again"
    before = find_entry(live.url, file)
    name_audience("https://production.example")
    told = run("login", *options, status=2).stderr
    assert f"audience 'https://production.example', at the last login {AUDIENCE!r}" in told
    assert "client" not in told
    assert "`ipnext logout`" in told
    assert find_entry(live.url, file) == before


@pytest.mark.usefixtures("settings")
def test_a_renewed_login_keeps_its_terms(run, live, file, name_audience):
    run("login", "--yes")
    note_credential(live.url, {**find_entry(live.url, file), "renew_at": time.time() - 1}, file)
    run("whoami", status=2)
    name_audience("https://production.example")
    assert "at the last login" in run("login", status=2).stderr


@pytest.mark.usefixtures("settings")
def test_an_operator_says_which_terms_are_right(run, live, provider, monkeypatch):
    monkeypatch.setenv("IPNEXT_LOGIN_AUDIENCE", "https://production.example")
    told = run("login", "--yes", status=2).stderr
    assert f"audience {AUDIENCE!r}, the settings say 'https://production.example'" in told
    monkeypatch.setenv("IPNEXT_LOGIN_AUDIENCE", AUDIENCE)
    assert "are not agreed to" in run("login", status=2).stderr, "provider and client are still open"
    monkeypatch.setenv("IPNEXT_LOGIN_ISSUER", provider.issuer)
    monkeypatch.setenv("IPNEXT_LOGIN_CLIENT_ID", CLIENT_ID)
    assert f"logged in to {live.url}" in run("login").stderr


@pytest.mark.parametrize("options", [(), ("--key",)])
@pytest.mark.usefixtures("settings")
def test_a_key_on_standard_input_is_kept_without_asking_the_provider(run, live, file, provider, options):
    key = live.rooms.add_key("bot", Role.VIEWER)
    told = run("login", *options, text=f"{key}\n").stderr
    assert told == f"logged in to {live.url} as bot: viewer of everything\n"
    assert find_entry(live.url, file) == {"credential": key}
    assert not provider.asked
    assert run("logout").stderr == f"forgot the credential for {live.url}\n"


@pytest.mark.usefixtures("settings")
def test_a_key_that_was_asked_for_has_to_be_there(run):
    assert "no key was given" in run("login", "--key", status=2).stderr


def test_without_an_identity_provider_a_login_needs_a_key(run, live, monkeypatch):
    assert "`ipnext login --key`" in run("login", status=2).stderr
    key = live.rooms.add_key("bot", Role.VIEWER)

    monkeypatch.setattr(identity.typer, "prompt", lambda *_, **__: key)
    monkeypatch.setattr(identity, "_is_terminal", lambda: True)
    told = run("login").stderr
    assert "no identity provider is configured" in told
    assert f"logged in to {live.url} as bot" in told


@pytest.mark.usefixtures("settings")
def test_roles_are_listed_and_revoked(run, admin):
    made = json.loads(admin("roles", "grant", "user:ann", "--role", "operator", "--region", "eu", "-o", "json").stdout)
    admin("roles", "grant", "group:ops (night)", "--role", "admin")
    listed = admin("roles", "list").stdout
    assert re.search(r"group:ops \(night\) +admin +everything +key admin", listed)
    assert re.search(rf"{made['id']} +user:ann +operator +region eu +key admin", listed)
    assert admin("roles", "revoke", made["id"]).stdout == "user:ann is no longer operator of region eu\n"
    assert "`ipnext roles list`" in admin("roles", "revoke", made["id"], status=2).stderr
    assert [role["subject"] for role in json.loads(admin("roles", "list", "-o", "json").stdout)] == [
        "group:ops (night)"
    ]


@pytest.mark.usefixtures("settings")
@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (
            ("ann", "--role", "viewer"),
            "subject: 'ann' can't be used; allowed: group:NAME, user:NAME, email:ADDRESS, sub:ID",
        ),
        (("user:ann", "--role", "root"), "'root' is not one of"),
        (("user:ann", "--role", "viewer", "--owner", "A B"), "owner: 'A B' can't be used"),
        (("user:ann", "--role", "viewer", "--region", "eu*"), "region: 'eu*' can't be used"),
        (("user:ann", "--role", "publisher", "--region", "eu"), "over a region there are viewer and operator"),
    ],
)
def test_a_wrong_grant_is_one_line_with_what_is_allowed(admin, arguments, words):
    told = admin("roles", "grant", *arguments, status=2).stderr
    assert words in told
    assert told.count("\n") == 1
