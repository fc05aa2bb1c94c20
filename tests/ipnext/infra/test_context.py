"""What the processes of a region are started with."""

from pathlib import Path
from unittest.mock import Mock

import pytest

from ipnext.artifacts.disk_reserve import RESERVE_BYTES
from ipnext.infra.context import RegionContext
from ipnext.infra.settings import AgentSettings
from ipnext.process.store_environment import read_store_environment
from ipnext.settings import PlatformSettings


def site(root: Path, *, artifacts: str = "file:///store", **settings: object) -> RegionContext:
    return RegionContext(
        region="us-east", directory=root, artifacts=artifacts, gateway_port=1,
        settings=AgentSettings.model_validate(settings), places=Mock(), session=Mock(),
    )  # fmt: skip


SECRETS = (
    *("IPNEXT_DATABASE_URL", "IPNEXT_API_KEY", "IPNEXT_COMPONENT_KEY_FILE", "TEMPORAL_API_KEY"),
    *("AWS_SECRET_ACCESS_KEY", "HF_TOKEN", "PGPASSWORD", "HTTPS_PROXY", "OF_AN_OPERATOR"),
)


@pytest.fixture
def secrets(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in SECRETS:
        monkeypatch.setenv(name, "secret")


@pytest.mark.usefixtures("secrets")
@pytest.mark.parametrize("engine", ["torch", "vllm"])
def test_processes_of_a_region_inherit_listed_variables_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, engine: str
) -> None:
    monkeypatch.setenv("IPNEXT_NATIVE_LIBRARY_KEYS_FILE", "/keys.pem")
    monkeypatch.setenv("LC_ALL", "C.UTF-8")
    place = site(tmp_path, artifacts="s3://bucket/store")
    for given in (place.environment(), place.host_environment(engine)):
        assert "secret" not in given.values()
        assert (given["IPNEXT_NATIVE_LIBRARY_KEYS_FILE"], given["LC_ALL"]) == ("/keys.pem", "C.UTF-8")


@pytest.mark.usefixtures("secrets")
def test_an_operator_names_further_variables_for_hosts_and_for_engines(tmp_path: Path) -> None:
    place = site(tmp_path, host_environment_inherit=["OF_AN_OPERATOR"], engine_environment_inherit=["HF_TOKEN"])
    assert {*SECRETS} & place.environment().keys() == {"OF_AN_OPERATOR"}
    assert {*SECRETS} & place.host_environment("torch").keys() == {"OF_AN_OPERATOR"}
    assert {*SECRETS} & place.host_environment("vllm").keys() == {"OF_AN_OPERATOR", "HF_TOKEN"}


@pytest.mark.usefixtures("secrets")
@pytest.mark.parametrize("engine", ["torch", "vllm"])
def test_the_processes_that_fetch_for_hosts_find_the_stores_credentials_in_a_file(tmp_path: Path, engine: str) -> None:
    place = site(tmp_path, artifacts="s3://bucket/store")
    place.keep_store_environment()
    command = place.host_command("one", "unix:///run/one", engine=engine)
    file = Path(command[command.index("--store-environment") + 1])
    assert {*SECRETS} & read_store_environment(file).keys() == {"AWS_SECRET_ACCESS_KEY", "HTTPS_PROXY"}
    assert file.stat().st_mode & 0o777 == 0o600
    assert "secret" not in command


@pytest.mark.usefixtures("secrets")
def test_a_store_that_is_a_directory_needs_no_credentials(tmp_path: Path) -> None:
    site(tmp_path, artifacts="s3://bucket/store").keep_store_environment()
    place = site(tmp_path)
    place.keep_store_environment()
    assert not place.store_environment_file.exists()
    assert "--store-environment" not in place.host_command("one", "unix:///run/one")


@pytest.mark.usefixtures("secrets")
def test_a_host_program_of_the_operator_fetches_by_itself(tmp_path: Path) -> None:
    place = site(tmp_path, artifacts="s3://bucket/store", host_command=["my-host", "{port}"])
    assert "--store-environment" not in place.host_command("one", "http://127.0.0.1:1")
    assert {*SECRETS} & place.host_environment("torch").keys() == {"AWS_SECRET_ACCESS_KEY", "HTTPS_PROXY"}


@pytest.mark.parametrize("engine", ["torch", "vllm"])
def test_a_host_is_told_how_to_confine_itself(tmp_path: Path, engine: str) -> None:
    settings = {"host_confinement": "required", "host_readable": ["/opt/engine"], "host_writable": ["/var/tmp/engine"]}
    command = site(tmp_path, **settings).host_command("one", "unix:///run/one", engine=engine)
    assert [word for word in command if "confinement" in word] == ["--confinement=required"]
    assert {"--readable=/opt/engine", "--writable=/var/tmp/engine"} < set(command)


@pytest.mark.parametrize("engine", ["torch", "vllm"])
def test_a_host_is_told_of_another_reserve_than_its_own(tmp_path: Path, engine: str) -> None:
    assert "--disk-reserve-bytes" not in site(tmp_path).host_command("one", "unix:///run/one", engine=engine)
    command = site(tmp_path, disk_reserve_bytes=7).host_command("one", "unix:///run/one", engine=engine)
    assert command[command.index("--disk-reserve-bytes") + 1] == "7"
    defaults = {kind.model_fields["disk_reserve_bytes"].default for kind in (AgentSettings, PlatformSettings)}
    assert defaults == {RESERVE_BYTES}
