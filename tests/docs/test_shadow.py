"""docs/shadow.md tells of the fields, settings, limits and bounds that there are."""

import re
from pathlib import Path
from typing import get_args

import pytest

from ipnext.model.deployment.route_table import Shadow
from ipnext.model.gate.shadow import MOST_OUTPUTS, OTHER_OUTPUTS, DropReason, Mismatch, ShadowLimits
from ipnext.model.lifecycle.shadow import ShadowSettings
from serving.metrics.answer_differences import RANKED
from serving.router.shadow_mirror import HELD_BYTES, MAX_ANSWER_BYTES, MAX_JSON_BYTES, MAX_REQUEST_BYTES

TEXT = (Path(__file__).parents[2] / "docs" / "shadow.md").read_text(encoding="utf-8")
STAGE, _, DATA_PLANE = TEXT.partition("## What is mirrored")


def rows_of(text):
    return {name: cell.strip() for name, cell in re.findall(r"^\| `(\w+)` \|([^|]*)\|", text, re.MULTILINE)}


ROWS = rows_of(DATA_PLANE)


def test_every_field_every_limit_and_every_reason_to_drop_has_a_line():
    limits = {str(field.alias) for field in ShadowLimits.model_fields.values()}
    assert ROWS.keys() == Shadow.model_fields.keys() | limits | set(get_args(DropReason))


def test_the_defaults_are_the_documented_ones():
    fields = [(name, field.default) for name, field in Shadow.model_fields.items()]
    fields += [(field.alias, field.default) for field in ShadowLimits.model_fields.values()]
    numbers = {name: f"{default:g}" for name, default in fields if isinstance(default, int | float)}
    assert {name: ROWS[name] for name in numbers} == numbers


def test_every_setting_of_the_stage_has_a_line_with_its_default():
    own = ShadowSettings.model_fields.keys() - ShadowLimits.model_fields.keys()
    fields = {name: ShadowSettings.model_fields[name] for name in own}
    told = {str(field.alias): field.default for field in fields.values()}
    assert rows_of(STAGE) == {
        name: f"{default:g}" if isinstance(default, int | float) else default for name, default in told.items()
    }


@pytest.mark.parametrize(
    "words",
    [
        (
            f"the request has more than {MAX_REQUEST_BYTES // 2**20} MiB, its answer more than "
            f"{MAX_ANSWER_BYTES // 2**10} KiB, or either more than {MAX_JSON_BYTES // 2**10} KiB of JSON"
        ),
        f"take {HELD_BYTES // 2**20} MiB in the router",
        (
            f"The first {MOST_OUTPUTS} outputs have counts of their own, further ones have common counts under "
            f"`{OTHER_OUTPUTS}`"
        ),
        "the best {}, {}, {} or {},".format(*RANKED),
        *(f"`{kind}`" for kind in get_args(Mismatch)),
    ],
)
def test_the_figures_in_force_are_the_documented_ones(words):
    assert words in TEXT
