"""Settings of a torch part: what a manifest may say, a host takes, and docs/serving.md has with its default."""

import re
from pathlib import Path

import pytest

from ipnext.model.settings.engine import TorchSettings, torch_settings
from serving.engines.torch.compiled import wants_compiled
from serving.host.served_part import batch_limits

PAGE = (Path(__file__).parents[4] / "docs" / "serving.md").read_text(encoding="utf-8")


def test_every_setting_has_a_line_with_its_default():
    lines = dict(
        re.findall(r"^\| `(\w+)` \| `([^|]*)` \|", PAGE.split("## Settings")[1].split("\n## ")[0], flags=re.MULTILINE)
    )
    assert lines == {"threads": "1", "batching": "{maxRows: 512, latencyMs: 10}", "compile": "false"}
    assert set(lines) == set(TorchSettings.model_fields)


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"threads": 2, "batching": False, "compile": True},
        {"batching": True, "compile": {"tolerance": 1e-5}},
        {"batching": {"maxRows": 8, "latencyMs": 2}},
    ],
)
def test_a_host_takes_what_a_manifest_may_say(settings):
    checked, limits = torch_settings(settings), batch_limits(settings)
    assert limits.off is (checked.batching is None)
    if checked.batching is not None:
        assert (checked.batching.max_rows, checked.batching.latency_ms) == (limits.max_rows, limits.latency_ms)
    assert wants_compiled(settings) is (checked.compile is not False)
