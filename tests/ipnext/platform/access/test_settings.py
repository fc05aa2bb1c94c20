"""Policies and identity provider of the API.

One set is in force for all gateways, and no process replaces it by starting.
"""

import asyncio

import pytest
from structlog.testing import capture_logs

from ipnext.errors import InvalidInput
from ipnext.platform.access.settings import AccessSettings, note_settings, read_access_settings
from ipnext.platform.checks import _access_settings
from ipnext.settings import PlatformSettings
from tests.identity_provider import AUDIENCE

FORBID = '@id("none") forbid (principal, action == Action::"models.predict", resource);'
PROVIDER = {"oidc_issuer": "https://login.example.com", "oidc_audience": AUDIENCE}


@pytest.fixture
def with_settings(rooms, tmp_path):
    """Settings of a process, with these policies."""

    def make(policies="", **more):
        file = tmp_path / f"{len(policies)}.cedar"
        file.write_text(policies)
        given = {"database_url": rooms.store.name, "policies_file": file if policies else None}
        return rooms.settings.model_copy(update=given | more)

    return make


def start(rooms, settings):
    """What an API process does as it starts; the variables that are not as those in force."""
    mine = read_access_settings(settings)
    provider = note_settings(rooms.store, mine)
    if provider is not None:
        provider.close()
    with rooms.store.read() as unit:
        return mine.differing(unit.access_list_state())


def in_force(rooms):
    with rooms.store.read() as unit:
        return unit.access_list_state()


async def readiness(rooms, settings):
    rooms.settings = settings
    async with rooms.client() as http:
        answer = await http.get("/readyz")
        return answer.status_code, answer.json()["access_settings"]


def test_the_first_process_puts_its_settings_in_force_and_equal_ones_change_nothing(rooms, with_settings):
    assert start(rooms, with_settings(FORBID, **PROVIDER)) == ()
    mark = rooms.store.revision()
    for version in (0, 0):
        assert start(rooms, with_settings(FORBID, **PROVIDER, access_settings_version=version)) == ()
    assert rooms.store.revision() == mark
    assert (in_force(rooms).policies, in_force(rooms).issuer.audience) == (FORBID, AUDIENCE)


def test_a_process_that_starts_with_other_settings_takes_nothing_out_of_force(rooms, with_settings):
    start(rooms, with_settings(FORBID, **PROVIDER, access_settings_version=2))
    for version in (2, 1, 0):
        with capture_logs() as logs:
            differing = start(rooms, with_settings(access_settings_version=version))
        assert differing == (
            "IPNEXT_POLICIES_FILE",
            "IPNEXT_OIDC_ISSUER",
            "IPNEXT_OIDC_AUDIENCE",
            "IPNEXT_OIDC_GROUPS_CLAIM",
        )
        (said,) = [entry for entry in logs if entry["log_level"] == "error"]
        assert "raise IPNEXT_ACCESS_SETTINGS_VERSION" in said["remedy"]
    assert (in_force(rooms).policies, in_force(rooms).version) == (FORBID, 2)
    assert in_force(rooms).issuer.issuer == PROVIDER["oidc_issuer"]


def test_a_higher_version_replaces_them(rooms, with_settings):
    start(rooms, with_settings(FORBID, **PROVIDER))
    claims = with_settings(**PROVIDER, oidc_groups_claim="roles", access_settings_version=1)
    assert start(rooms, claims) == ()
    assert (in_force(rooms).policies, in_force(rooms).issuer.groups_claim) == ("", "roles")
    assert start(rooms, with_settings(FORBID, **PROVIDER)) == ("IPNEXT_POLICIES_FILE", "IPNEXT_OIDC_GROUPS_CLAIM")


def test_readyz_tells_which_of_two_processes_is_not_in_force(rooms, with_settings):
    old, new = with_settings(), with_settings(FORBID, access_settings_version=1)
    assert asyncio.run(readiness(rooms, new)) == (200, "ok"), "no API has put any in force yet"
    start(rooms, old)
    assert asyncio.run(readiness(rooms, old)) == (200, "ok")
    assert asyncio.run(readiness(rooms, new)) == (503, "differ")
    start(rooms, new)
    assert asyncio.run(readiness(rooms, new)) == (200, "ok")
    assert asyncio.run(readiness(rooms, old)) == (503, "differ"), "it needs no start to notice"


def test_a_changed_file_of_policies_counts_for_a_process_once_it_starts_again(rooms, with_settings):
    settings = with_settings(FORBID)
    app = rooms.app()
    mine = app.state.platform.access_settings
    settings.policies_file.write_text(FORBID.replace("none", "nobody"))
    assert mine == AccessSettings()
    assert read_access_settings(settings).policies != FORBID


def test_platform_check_compares_the_settings_of_its_environment(rooms, with_settings, tmp_path):
    (first,) = _access_settings(with_settings())
    assert (first.state, first.detail) == ("ok", "no API has put any in force yet")
    start(rooms, with_settings(FORBID, access_settings_version=3))
    (same,) = _access_settings(with_settings(FORBID))
    (none,) = _access_settings(with_settings())
    assert {(one.state, one.detail) for one in (same, none)} == {("ok", "version 3 is in force")}
    (other,) = _access_settings(with_settings(FORBID + "\n", access_settings_version=2))
    assert other.state == "wrong"
    assert other.detail == "version 3 is in force, and IPNEXT_POLICIES_FILE of this environment, at version 2, differs"
    assert "IPNEXT_ACCESS_SETTINGS_VERSION" in other.remedy
    absent = with_settings().model_copy(update={"policies_file": tmp_path / "absent"})
    assert _access_settings(absent)[0].state == "wrong"
    unmigrated = PlatformSettings(database_url=f"sqlite:///{tmp_path}/none.db")
    assert _access_settings(unmigrated) == ()


def test_an_issuer_without_an_audience_is_refused(rooms):
    with pytest.raises(InvalidInput, match="IPNEXT_OIDC_AUDIENCE"):
        read_access_settings(rooms.settings.model_copy(update={"oidc_issuer": "https://login.example.com"}))
