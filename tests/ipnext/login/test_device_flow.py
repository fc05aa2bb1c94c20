"""Logins by a device code, their renewal, and their end, against a real provider."""

import errno
import json
import os
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest

from ipnext.client.credential import Credential
from ipnext.client.login import LoginTerms, current_credential, end_login, entry_of
from ipnext.errors import DeadlineExceeded, InvalidInput, Unauthenticated, Unavailable
from ipnext.login.credentials import note_credential
from ipnext.login.device_flow import DeviceLogin, Tokens
from ipnext.login.identity_provider import ProviderClient
from ipnext.settings import ClientSettings
from tests.identity_provider import AUDIENCE, CLIENT_ID

API = "http://127.0.0.1:8700"
SCOPES = ("openid", "offline_access")


class Time:
    """Time that passes by sleeping only."""

    def __init__(self):
        self.now, self.slept = 0.0, []

    def sleep(self, seconds):
        self.slept.append(seconds)
        self.now += seconds

    def clock(self):
        return self.now


@pytest.fixture
def time():
    return Time()


@pytest.fixture
def login(provider, time):
    client = ProviderClient(provider.issuer)
    yield DeviceLogin(client, CLIENT_ID, sleep=time.sleep, clock=time.clock)
    client.close()


@pytest.fixture
def file(tmp_path):
    return tmp_path / "credentials.json"


def device_answer(provider, **changes):
    found = {"device_code": "the-device-code", "user_code": "W", "verification_uri": "https://id.example.com/a"}
    body = json.dumps({name: value for name, value in (found | changes).items() if value is not None})
    provider.replaced["device"] = (200, {"Content-Type": "application/json"}, body.encode())


def test_a_code_is_asked_for_and_polled_until_the_person_agrees(provider, login, time):
    provider.device_answers = ["authorization_pending", "authorization_pending"]
    code = login.begin(SCOPES, AUDIENCE)
    assert (code.user_code, code.address) == ("WDJB-MJHT", f"{provider.issuer}/activate")
    tokens = login.wait(code)
    assert tokens.access.count(".") == 2
    assert tokens.refresh in provider.refresh_tokens
    assert tokens.lasts_seconds == 600
    assert time.slept == [5, 5, 5]
    (asked, form), *polls = provider.forms
    assert (asked, form) == ("device", {"client_id": CLIENT_ID, "scope": "openid offline_access", "audience": AUDIENCE})
    assert {name for name, _ in polls} == {"token"}


def test_slow_down_adds_five_seconds_for_all_further_polls(provider, login, time):
    provider.device_answers = ["authorization_pending", "slow_down", "authorization_pending", "slow_down"]
    login.wait(login.begin(SCOPES, AUDIENCE))
    assert time.slept == [5, 5, 10, 10, 15]


@pytest.mark.parametrize(("interval", "first"), [(None, 5), (2, 2), (0, 1), (-3, 1), (9999, 60), ("5", 5), (True, 5)])
def test_the_provider_sets_the_interval_within_bounds(provider, login, time, interval, first):
    device_answer(provider, interval=interval)
    login.wait(login.begin(SCOPES, AUDIENCE))
    assert time.slept == [first]


def test_polls_become_rarer_while_the_provider_does_not_answer(provider, login, time):
    code = login.begin(SCOPES, AUDIENCE)
    provider.replaced["token"] = (503, {}, b"")
    with pytest.raises(DeadlineExceeded):
        login.wait(code._replace(lasts_seconds=300))
    assert time.slept == [5, 10, 20, 40, 60, 60, 60, 60]


@pytest.mark.parametrize(
    ("error", "kind", "words"),
    [
        ("access_denied", Unauthenticated, "refused: access_denied"),
        ("expired_token", DeadlineExceeded, "was not entered in time"),
        ("invalid_client", Unauthenticated, "invalid_client"),
        ("invalid_scope", Unauthenticated, "invalid_scope"),
    ],
)
def test_a_refusal_ends_the_polls(provider, login, time, error, kind, words):
    provider.device_answers = ["authorization_pending", error]
    with pytest.raises(kind, match=words):
        login.wait(login.begin(SCOPES, AUDIENCE))
    assert len(time.slept) == 2


def test_a_code_that_is_not_entered_ends(provider, login, time):
    provider.device_answers = ["authorization_pending"] * 1000
    with pytest.raises(DeadlineExceeded, match="`ipnext login` gives another one"):
        login.wait(login.begin(SCOPES, AUDIENCE))
    assert 900 <= time.now < 905


@pytest.mark.parametrize(
    "changes",
    [
        {"verification_uri": "javascript:alert(1)"},
        {"verification_uri": "https://id.example.com/\x1b[2J"},
        {"verification_uri_complete": "file:///etc/passwd"},
        {"user_code": None},
        {"device_code": 7},
    ],
)
def test_a_device_answer_that_can_not_be_shown_is_refused(provider, login, changes):
    device_answer(provider, **changes)
    with pytest.raises(Unavailable):
        login.begin(SCOPES, AUDIENCE)


def test_what_a_provider_says_is_shown_without_control_characters(provider, login):
    device_answer(provider, user_code="W\x1b[31mD\n")
    assert login.begin(SCOPES, AUDIENCE).user_code == "W[31mD"
    provider.replaced["device"] = (400, {}, json.dumps({"error": "bad\x1b[2J", "error_description": "a\nb"}).encode())
    with pytest.raises(Unauthenticated, match=r"refused: bad\[2J \(ab\)"):
        login.begin(SCOPES, AUDIENCE)


def test_a_provider_without_the_flow_is_told(provider, login):
    provider.changed_discovery = {"device_authorization_endpoint": None}
    with pytest.raises(Unavailable, match="offers no device authorization"):
        login.begin(SCOPES, AUDIENCE)


def test_a_token_of_another_kind_is_refused(provider, login):
    body = json.dumps({"access_token": "a", "token_type": "DPoP"}).encode()
    provider.replaced["token"] = (200, {}, body)
    code = login.begin(SCOPES, AUDIENCE)
    with pytest.raises(DeadlineExceeded):
        login.wait(code)


# renewal


def logged_in(provider, file, *, lasts=600.0, refresh="the-refresh-token"):
    provider.refresh_tokens.add("the-refresh-token")
    entry = entry_of(
        LoginTerms(provider.issuer, CLIENT_ID, "ipnext"), Tokens("the-first-token", refresh, lasts), clock=lambda: 0.0
    )
    note_credential(API, entry, file)


def kept(file):
    return json.loads(file.read_text())[API]


def test_a_token_is_used_until_it_is_about_to_end_then_renewed(provider, file):
    logged_in(provider, file)
    assert current_credential(API, file, clock=lambda: 539.0).text == "the-first-token"
    assert not provider.asked
    renewed = current_credential(API, file, clock=lambda: 540.0).text
    assert renewed == kept(file)["credential"] != "the-first-token"
    assert kept(file)["refresh_token"] in provider.refresh_tokens
    assert kept(file)["expires_at"] == 1140
    assert current_credential(API, file, clock=lambda: 541.0).text == renewed
    assert provider.asked["token"] == 1
    assert file.stat().st_mode & 0o777 == 0o600


def test_a_refresh_token_is_not_used_up_while_the_new_one_can_not_be_kept(provider, file, monkeypatch):
    logged_in(provider, file)

    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr("ipnext.login.credentials.write_private", full)
        with pytest.raises(InvalidInput, match="No space left"):
            current_credential(API, file, clock=lambda: 550.0)
    assert not provider.asked["token"]
    assert current_credential(API, file, clock=lambda: 551.0).text != "the-first-token"


def test_a_token_of_a_short_life_is_renewed_in_its_last_quarter(provider, file):
    logged_in(provider, file, lasts=20.0)
    assert current_credential(API, file, clock=lambda: 14.9).text == "the-first-token"
    assert current_credential(API, file, clock=lambda: 15.0).text != "the-first-token"


def test_many_clients_renew_once(provider, file):
    logged_in(provider, file)
    with ThreadPoolExecutor(6) as pool:
        found = set(pool.map(lambda _: current_credential(API, file, clock=lambda: 550.0).text, range(12)))
    assert len(found) == 1
    assert provider.asked["token"] == 1


def test_a_provider_that_keeps_the_refresh_token_keeps_it_here(provider, file):
    logged_in(provider, file)
    body = json.dumps({"access_token": "the-second", "token_type": "bearer"}).encode()
    provider.replaced["token"] = (200, {}, body)
    assert current_credential(API, file, clock=lambda: 550.0).text == "the-second"
    assert kept(file)["refresh_token"] == "the-refresh-token"
    assert kept(file)["expires_at"] == 850


def test_a_refused_renewal_says_to_log_in_once_the_token_has_ended(provider, file):
    logged_in(provider, file)
    provider.refresh_tokens.clear()
    assert current_credential(API, file, clock=lambda: 599.0).text == "the-first-token"
    with pytest.raises(Unauthenticated, match=r"has ended .*invalid_grant.*`ipnext login` logs in again"):
        current_credential(API, file, clock=lambda: 600.0)
    assert kept(file)["credential"] == "the-first-token"


def test_a_login_without_refresh_token_ends_with_its_token(provider, file):
    logged_in(provider, file, refresh=None)
    assert current_credential(API, file, clock=lambda: 599.0).text == "the-first-token"
    with pytest.raises(Unauthenticated, match="gave no refresh token; `ipnext login`"):
        current_credential(API, file, clock=lambda: 600.0)


def test_a_provider_that_is_away_is_missed_only_when_the_token_has_ended(provider, file):
    logged_in(provider, file)
    provider.away = True
    assert current_credential(API, file, clock=lambda: 599.0).text == "the-first-token"
    with pytest.raises(Unavailable, match="does not answer"):
        current_credential(API, file, clock=lambda: 600.0)
    provider.away = False
    assert current_credential(API, file, clock=lambda: 601.0).text == kept(file)["credential"]


def test_an_entry_that_was_edited_sends_no_token_over_plain_http(provider, file):
    logged_in(provider, file)
    note_credential(API, kept(file) | {"issuer": "http://evil.example.com"}, file)
    with pytest.raises(InvalidInput, match="allowed: https://HOST"):
        current_credential(API, file, clock=lambda: 600.0)


def test_the_client_sends_the_renewed_token_to_its_api_alone(provider, file):
    logged_in(provider, file)  # ended long ago by the clock of this machine
    sent = []

    def answer(request):
        sent.append((request.url.host, request.headers.get("Authorization")))
        return httpx.Response(200)

    credential = Credential(API, given=None, settings=ClientSettings(credentials_file=file, api_key=None))
    with httpx.Client(transport=httpx.MockTransport(answer), auth=credential) as http:
        http.get(f"{API}/v1/models")
        http.get("http://evil.example.com/")
    assert sent == [("127.0.0.1", f"Bearer {kept(file)['credential']}"), ("evil.example.com", None)]


# end


def test_a_logout_forgets_and_revokes(provider, file):
    logged_in(provider, file)
    assert end_login(API, file) == (True, "")
    assert provider.revoked == ["the-refresh-token"]
    assert json.loads(file.read_text()) == {}
    assert end_login(API, file) == (False, "")


@pytest.mark.parametrize(
    ("break_it", "words"),
    [
        (lambda p: p.changed_discovery.update(revocation_endpoint=None), "offers no revocation"),
        (lambda p: setattr(p, "away", True), "was not revoked"),
        (lambda p: p.replaced.update(revoke=(400, {}, b'{"error": "unsupported_token_type"}')), "was not revoked"),
        (lambda p: p.replaced.update(revoke=(503, {}, b"")), "was not revoked"),
    ],
)
def test_a_logout_forgets_even_if_the_provider_does_not_revoke(provider, file, break_it, words):
    logged_in(provider, file)
    break_it(provider)
    known, remark = end_login(API, file)
    assert known
    assert words in remark
    assert json.loads(file.read_text()) == {}


def test_a_key_is_forgotten_and_no_provider_is_asked(provider, file):
    note_credential(API, {"credential": "ipnext_key"}, file)
    assert end_login(API, file) == (True, "")
    assert not provider.asked
