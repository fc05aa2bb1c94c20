"""temporal-dev.yaml is read strictly and says how the server starts."""

from pathlib import Path

import pytest
import yaml

from ipnext import names
from ipnext.devfile import find_devfile, read_devfile, server_command, server_options, temporal_binary
from ipnext.errors import InvalidInput, NotFound
from ipnext.settings import PlatformSettings


def changed(tmp_path: Path, **sections: object) -> Path:
    """The file of the source tree with some sections replaced."""
    document = yaml.safe_load(find_devfile().read_text())
    path = tmp_path / "temporal-dev.yaml"
    path.write_text(yaml.safe_dump({**document, **sections}))
    return path


def test_the_file_serves_both_queues_and_registers_every_search_attribute():
    devfile = read_devfile()

    assert devfile.group(names.LIFECYCLE_QUEUE).workflow_slots > 0
    assert devfile.group(names.PLANNER_QUEUE).executor == "process"
    assert devfile.temporal.search_attributes == names.SEARCH_ATTRIBUTES
    assert devfile.temporal.pragmas["journal_mode"] == "WAL"


def test_an_unknown_field_is_refused_with_its_path_and_what_is_allowed(tmp_path):
    path = changed(tmp_path, api={"prot": 1})

    with pytest.raises(InvalidInput) as caught:
        read_devfile(path)

    assert caught.value.field == "api.prot"
    assert caught.value.message == "temporal-dev.yaml: api.prot: unknown field; allowed here: port"


def test_a_value_out_of_range_is_refused_with_its_path(tmp_path):
    path = changed(tmp_path, gateways={"first_port": 70000})

    with pytest.raises(InvalidInput, match=r"gateways\.first_port"):
        read_devfile(path)


def test_a_file_that_is_not_there_or_no_yaml_is_refused(tmp_path):
    with pytest.raises(NotFound, match="no file"):
        read_devfile(tmp_path / "none.yaml")
    (tmp_path / "bad.yaml").write_text("a: [")
    with pytest.raises(InvalidInput, match="not YAML"):
        read_devfile(tmp_path / "bad.yaml")


def test_a_queue_that_no_group_serves_is_named_with_the_known_ones():
    with pytest.raises(NotFound, match=r"'nothing'; known: .*ipnext-lifecycle"):
        read_devfile().group("nothing")


def test_the_server_listens_on_the_loopback_only_and_keeps_its_database(tmp_path):
    server = read_devfile().temporal

    command = " ".join(server_command(server, binary=temporal_binary(), state=tmp_path))

    assert "--ip 127.0.0.1 --port 7233 --headless" in command
    assert f"--db-filename {tmp_path}/temporal.db --sqlite-pragma journal_mode=WAL" in command
    assert "--search-attribute IPnextGeneration=Int" in command
    assert "--sqlite-pragma" not in server_options(server, with_database=False)
    command = " ".join(server_command(server, binary=temporal_binary(), state=tmp_path, ui=("127.9.8.7", 4711)))
    assert "--ui-ip 127.9.8.7 --ui-port 4711" in command
    assert "--headless" not in command


def test_what_a_worker_needs_of_the_file_is_handed_to_it_as_settings(tmp_path, monkeypatch):
    schedules = {"replan": {"every_hours": 3, "jitter_minutes": 7}}
    for name, value in read_devfile(changed(tmp_path, schedules=schedules)).worker_settings().items():
        monkeypatch.setenv(name, value)
    settings = PlatformSettings()
    assert (settings.replan_every_hours, settings.replan_jitter_minutes) == (3, 7)
    assert settings.lifecycle_workflow_slots == read_devfile().group(names.LIFECYCLE_QUEUE).workflow_slots
