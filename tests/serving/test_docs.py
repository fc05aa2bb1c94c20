"""docs/serving.md names every option and metric that there is."""

import re
from pathlib import Path

import pytest

from serving import host, router
from serving.router_metrics import RouterMetrics

TEXT = (Path(__file__).parents[2] / "docs" / "serving.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("main", [host.main, router.main], ids=["host", "router"])
def test_every_option_is_documented(main, capsys):
    with pytest.raises(SystemExit):
        main(["--help"])
    options = set(re.findall(r"--[a-z][a-z0-9-]+", capsys.readouterr().out)) - {"--help"}
    assert options
    assert {option for option in options if f"`{option}" not in TEXT and f" {option} " not in TEXT} == set()


def test_every_metric_is_documented_and_none_is_made_up():
    families = {family.name: family.type for family in RouterMetrics(region="r").registry.collect()}
    names = {name + ("_total" if kind == "counter" else "") for name, kind in families.items()}
    assert names == set(re.findall(r"`(ipnext_\w+)`", TEXT))
