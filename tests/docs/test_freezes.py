"""What docs/freezes.md and the example show is taken, and means what they say."""

import re
from datetime import UTC, datetime
from pathlib import Path

import pytest

from ipnext.freezes.calendar import FreezeCalendar
from ipnext.freezes.evaluation import next_windows
from ipnext.model.manifest.freeze import FreezeSpec, FreezeWindow
from ipnext.model.manifest.parser import parse_manifests

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "freezes.md").read_text(encoding="utf-8")
WRITTEN = re.findall(r"```yaml\n(.+?)```", PAGE, flags=re.DOTALL)
EXAMPLE = (ROOT / "examples" / "freeze.yaml").read_text(encoding="utf-8")


@pytest.mark.parametrize("text", [*WRITTEN, EXAMPLE])
def test_every_manifest_that_is_shown_is_taken_and_has_windows(text):
    for manifest in parse_manifests(text):
        assert next_windows(FreezeCalendar(manifest), datetime(2026, 11, 25, tzinfo=UTC))


def test_the_weekend_that_is_taken_out_is_none_and_the_next_one_is_as_long_as_it_says():
    (manifest,) = parse_manifests(WRITTEN[0])
    (window,) = next_windows(FreezeCalendar(manifest), datetime(2026, 11, 25, tzinfo=UTC))
    assert (window.start, window.end) == (datetime(2026, 12, 4, 17, tzinfo=UTC), datetime(2026, 12, 7, 7, tzinfo=UTC))


def test_the_sale_of_the_year_is_on_the_fourth_friday_of_november():
    sale = parse_manifests(EXAMPLE)[1]
    (window,) = next_windows(FreezeCalendar(sale), datetime(2027, 1, 1, tzinfo=UTC))
    assert (window.start, window.end) == (datetime(2027, 11, 26, 5, tzinfo=UTC), datetime(2027, 11, 30, 5, tzinfo=UTC))


def test_every_field_is_told():
    aliases = [field.alias for model in (FreezeSpec, FreezeWindow) for field in model.model_fields.values()]
    assert [alias for alias in aliases if f"`{alias}`" not in PAGE] == []
