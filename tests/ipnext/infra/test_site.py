"""What the processes of a region are started with."""

from pathlib import Path
from unittest.mock import Mock

import pytest

from ipnext.artifacts.disk_reserve import RESERVE_BYTES
from ipnext.infra.agent_settings import AgentSettings
from ipnext.infra.site import Site
from ipnext.settings import PlatformSettings


def site(root: Path, **settings: object) -> Site:
    return Site(
        region="us-east", directory=root, artifacts="file:///store", gateway_port=1,
        settings=AgentSettings.model_validate(settings), places=Mock(), session=Mock(),
    )  # fmt: skip


def test_processes_of_a_region_are_not_given_the_platforms_secrets(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("IPNEXT_DATABASE_URL", "IPNEXT_API_KEY", "TEMPORAL_API_KEY", "TEMPORAL_TLS_CLIENT_KEY_DATA"):
        monkeypatch.setenv(name, "secret")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "for the artifact store")
    given = site(tmp_path).environment()
    assert "secret" not in given.values()
    assert given["AWS_SECRET_ACCESS_KEY"] == "for the artifact store"


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
