"""What a source may read: by the settings, the owner, and who applied its manifest."""

import json
from pathlib import Path

import pytest

from ipnext.errors import PathNotAllowed, Unavailable
from ipnext.model.access.rights import Grant, Principal, Role
from ipnext.model.registry.sources import Reach
from ipnext.settings import PlatformSettings
from ipnext.sources.access import ReadAccess, reach_of
from ipnext.sources.credentials import read_credentials

pytestmark = pytest.mark.trust

SETTINGS = PlatformSettings(
    artifact_roots=(Path("/shared"), Path("/own/{owner}")),
    artifact_buckets=("shared", "own/{owner}"),
    source_urls=("https://shared.example.com", "https://own.example.com/{owner}"),
)
ANY = SETTINGS.model_copy(update={"administrators_read": "any"})


def principal(role: Role, owner: str = "*") -> Principal:
    return Principal(kind="key", id="a" * 16, name="x", grants=(Grant(role=role, owner=owner),))


@pytest.mark.parametrize(
    ("role", "owner", "settings", "reach"),
    [
        (Role.ADMIN, "*", ANY, Reach.ANY),
        (Role.ADMIN, "*", SETTINGS, Reach.SHARED),
        (Role.ADMIN, "search", ANY, Reach.OWNER),
        (Role.PUBLISHER, "*", ANY, Reach.SHARED),
        (Role.PUBLISHER, "search", ANY, Reach.OWNER),
    ],
)
def test_the_reach_follows_from_the_role_and_the_setting(role, owner, settings, reach):
    assert reach_of(principal(role, owner), settings) is reach


def test_without_a_shared_reach_only_places_with_the_owners_name_may_be_read():
    own = ReadAccess.of(SETTINGS, "search", Reach.OWNER)
    assert (own.roots, own.buckets, own.urls) == (
        (Path("/own/search"),),
        ("own/search",),
        ("https://own.example.com/search",),
    )
    shared = ReadAccess.of(SETTINGS, "search", Reach.SHARED)
    assert shared.roots == (Path("/shared"), Path("/own/search"))


def test_what_an_administrator_was_granted_ends_with_the_setting():
    assert ReadAccess.of(ANY, "search", Reach.ANY).readable_roots == (Path("/"),)
    assert ReadAccess.of(SETTINGS, "search", Reach.ANY).readable_roots == (Path("/shared"), Path("/own/search"))


@pytest.mark.parametrize(
    "url",
    [
        "https://shared.example.com.evil.net/x",
        "https://shared.example.com/../x",
        "http://shared.example.com",
        "https://own.example.com/ads",
        "https://own.example.com/search2",
        "https://own.example.com/",
    ],
)
def test_other_urls_may_not_be_read(url):
    with pytest.raises(PathNotAllowed) as refused:
        ReadAccess.of(SETTINGS, "search", Reach.SHARED).check_url(url)
    assert "IPNEXT_SOURCE_URLS" in refused.value.public.message
    assert "shared.example.com, " not in refused.value.public.message
    assert "shared.example.com, " in refused.value.message


def test_allowed_urls_and_those_below_them_may_be_read():
    access = ReadAccess.of(SETTINGS, "search", Reach.SHARED)
    for url in ("https://shared.example.com", "https://shared.example.com/mlflow", "https://own.example.com/search/x"):
        access.check_url(url)
    ReadAccess(reach=Reach.ANY).check_url("https://anything.example.net")


def test_credentials_are_those_of_the_longest_url_that_fits():
    access = ReadAccess(credentials={"https://a.example": "Basic 1", "https://a.example/team": "Basic 2"})
    assert access.authorization_for("https://a.example/team/api") == "Basic 2"
    assert access.authorization_for("https://a.example/other") == "Basic 1"
    assert access.authorization_for("https://a.example.evil.net/") is None
    assert "Basic" not in repr(access)


def test_a_credentials_file_is_read_if_it_is_private(tmp_path):
    file = tmp_path / "credentials.json"
    file.write_text(json.dumps({"https://a.example": "Bearer secret"}))
    file.chmod(0o600)
    assert read_credentials(file) == {"https://a.example": "Bearer secret"}
    file.chmod(0o640)
    with pytest.raises(Unavailable, match="chmod 600"):
        read_credentials(file)
    assert read_credentials(None) == {}


@pytest.mark.parametrize("content", ["{", "[]", '{"https://a": 1}', '{"https://a": "secret\\n"}', '{"https://a": ""}'])
def test_a_bad_credentials_file_is_named_without_its_content(tmp_path, content):
    file = tmp_path / "credentials.json"
    file.write_text(content)
    file.chmod(0o600)
    with pytest.raises(Unavailable, match="IPNEXT_SOURCE_CREDENTIALS_FILE") as refused:
        read_credentials(file)
    assert "secret" not in refused.value.message
