"""docs/transition.md shows the ladder of searches as the planner has it."""

import re
from dataclasses import fields
from pathlib import Path

from planner.transition.planner import build_ladder

TEXT = (Path(__file__).parents[2] / "docs" / "transition.md").read_text(encoding="utf-8")
TABLE = TEXT.split("<!-- ladder -->")[1].split("<!-- end -->")[0]
ROWS = re.findall(r"^\| (\d+) \| `(\w+)` \| [^|]+ \| ([^|]*)\|$", TABLE, flags=re.MULTILINE)
LADDER = [(str(number), search) for number, rung in enumerate(build_ladder({}), 1) for search in rung.searches]


def test_the_table_lists_the_searches_in_the_order_of_the_ladder():
    assert [(rung, name) for rung, name, _ in ROWS] == [(rung, type(search).__name__) for rung, search in LADDER]


def test_the_limits_of_the_searches_are_the_documented_ones():
    documented = {name: re.findall(r"\d[\d,]*", limits) for _, name, limits in ROWS}
    assert documented == {type(search).__name__: list(limits_of(search)) for _, search in LADDER}


def limits_of(search):
    for field in fields(search):
        if field.name.startswith("max_"):
            yield f"{getattr(search, field.name):,}"


def test_the_effort_of_a_rung_is_the_documented_one():
    efforts = {rung.effort for rung in build_ladder({})}
    assert [f"{effort:,}" for effort in efforts] == re.findall(r"an effort of ([\d,]+) replica sets", TEXT)
