"""Single items of `ipnext platform check`.

tests/workflows/runtime/test_platform_setup.py has the whole, with a server.
"""

import shutil
from contextlib import closing

import pytest
import yaml

from ipnext.model.manifest.parser import parse_manifest
from ipnext.platform.checks import _agents, _artifacts, _database, _owner
from ipnext.settings import PlatformSettings
from ipnext.store.store import Store
from tests.fleets import two_regions


def test_an_artifact_store_without_its_directory_is_missing(tmp_path):
    settings = PlatformSettings(artifacts_uri=f"file://{tmp_path}/artifacts")
    found = _artifacts(settings)
    assert (found.state, found.detail) == ("missing", f"no directory {tmp_path}/artifacts")
    assert "IPNEXT_ARTIFACTS_URI" in found.remedy
    (tmp_path / "artifacts").mkdir()
    assert _artifacts(settings).state == "ok"


def test_an_artifact_store_that_is_a_file_is_missing(tmp_path):
    (tmp_path / "artifacts").write_text("")
    assert _artifacts(PlatformSettings(artifacts_uri=f"file://{tmp_path}/artifacts")).state == "missing"


@pytest.mark.parametrize("place", ["ipnext.db", "absent/folder/ipnext.db"])
def test_a_database_that_is_absent_is_missing_and_stays_so(tmp_path, place):
    settings = PlatformSettings(database_url=f"sqlite:///{tmp_path}/{place}")
    (found,) = _database(settings)
    assert (found.item, found.state, found.detail) == ("database", "missing", f"no file {tmp_path}/{place}")
    assert found.remedy == "run `ipnext platform setup`, which creates it, or correct IPNEXT_DATABASE_URL"
    assert _owner(settings, "a") == ()
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_is_no_database_is_wrong_and_stays_as_it_is(tmp_path):
    (tmp_path / "notes.txt").write_text("no database " * 100)
    (found,) = _database(PlatformSettings(database_url=f"sqlite:///{tmp_path}/notes.txt"))
    assert (found.item, found.state, found.remedy) == ("database", "wrong", "correct IPNEXT_DATABASE_URL")
    assert "notes.txt" in found.detail
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


def test_a_region_of_the_fleet_without_an_agent_is_missing(migrated, tmp_path):
    url = f"sqlite:///{shutil.copy(migrated, tmp_path)}"
    with closing(Store.open(url)) as store, store.begin() as unit:
        unit.put_fleet(parse_manifest(yaml.safe_load(two_regions())).spec, expected_version=None)
    agents = {"us-east": "http://127.0.0.1:1"}
    found = {item.item: item for item in _agents(PlatformSettings(database_url=url, agents=agents))}
    assert {name: item.state for name, item in found.items()} == {"agent us-east": "wrong", "agent eu-west": "missing"}
    assert "changes wait for it" in found["agent eu-west"].detail
    assert "ipnext drain eu-west --disaster" in found["agent eu-west"].remedy
