"""docs/genai.md names every setting, option, metric and variable that there is, with the defaults in force."""

import re
from pathlib import Path

import pytest
from pydantic_core import PydanticUndefined

from ipnext.model.settings.engine import VllmSettings
from serving.genai import host
from serving.genai.adapters import Adapters
from serving.genai.command_line.interpreter import COMMAND_VARIABLE, PYTHON_VARIABLE
from serving.genai.engine.supervisor import SupervisorPace
from serving.genai.engine_manager import EngineManager
from serving.genai.metrics import EngineMetrics

TEXT = (Path(__file__).parents[2] / "docs" / "genai.md").read_text(encoding="utf-8")


def test_every_setting_has_a_line_with_its_default():
    lines = dict(re.findall(r"^\| `(\w+)` \| ([^|]*) \|", TEXT.split("## Settings")[1], flags=re.MULTILINE))
    assert set(lines) == {field.alias for field in VllmSettings.model_fields.values()}
    for field in VllmSettings.model_fields.values():
        default = field.default
        if default not in (None, (), PydanticUndefined):
            shown = (
                str(default).lower()
                if isinstance(default, bool)
                else f"{default:g}"
                if isinstance(default, float)
                else str(default)
            )
            assert lines[field.alias].strip("`") == shown, field.alias


def test_every_option_of_the_host_is_named(capsys):
    with pytest.raises(SystemExit):
        host.main(["--help"])
    for option in set(re.findall(r"--[a-z][a-z0-9-]+", capsys.readouterr().out)) - {"--help"}:
        assert option in TEXT, option


def test_every_metric_is_named_and_none_is_made_up(tmp_path):
    engines = EngineManager(None, tmp_path, None, host_id="h", check=None, adapters=Adapters(None), session=None)
    families = EngineMetrics(engines, region="r").registry.collect()
    names = {family.name + ("_total" if family.type == "counter" else "") for family in families}
    assert names == set(re.findall(r"`(ipnext_\w+)`", TEXT))


def test_the_variables_and_the_pace_are_those_in_force():
    pace = SupervisorPace()
    assert {PYTHON_VARIABLE, COMMAND_VARIABLE} <= set(re.findall(r"`(IPNEXT_\w+)`", TEXT))
    assert f"{pace.first_pause:g} s, {2 * pace.first_pause:g} s, ... {pace.longest_pause:g} s" in TEXT
    assert f"silent for {pace.unanswered:g} s leaves `ready`, after {pace.hung:g} s it is killed" in TEXT
