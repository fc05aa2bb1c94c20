"""Pictures of a plan, in the terminal and as SVG."""

import xml.etree.ElementTree as ET

import pytest
from rich.console import Console

from ipnext.model.planning.explanation import SupplyUse
from planner.cli.charts import bars, svg, units

AXES = (("us", "eu"), ("cpu", "l4"))


def use(region, kind, used, of, surge=0.0):
    return SupplyUse(region=region, hardware=kind, units=of, used=used, free=of - used, surge=surge, unit_cost=1.0)


@pytest.fixture
def uses():
    return [use("us", "cpu", 50.0, 100.0), use("us", "l4", 8.0, 8.0, surge=2.0), use("eu", "cpu", 120.0, 100.0)]


def printed(table):
    console = Console(width=100, record=True, file=None, force_terminal=False)
    with console.capture() as captured:
        console.print(table)
    return captured.get()


def test_bars_show_how_full_every_cell_is(uses):
    lines = printed(bars(uses, AXES)).splitlines()
    assert lines[1].split() == ["region", "cpu", "l4"]
    assert lines[2].split() == ["us", "████░░░░", "50%", "████████", "100%"]
    assert lines[3].split() == ["eu", "████████", "120%", "·"]


def test_figures_show_used_free_and_surge(uses):
    lines = printed(units(uses, AXES)).splitlines()
    assert "surge" in lines[0]
    assert lines[2].split("  ")[1:] != []
    assert "50 / 50" in lines[2]
    assert "8 / 0 + 2" in lines[2]
    assert "120 / -20" in lines[3]
    assert "surge" not in printed(units(uses[:1], AXES))


@pytest.mark.parametrize(
    ("used", "of", "told"),
    [
        (0.0, 10.0, "0%"),
        (0.001, 10.0, "1%"),
        (9.999, 10.0, "99%"),
        (10.0, 10.0, "100%"),
        (0.0, 0.0, "0%"),
        (1.0, 0.0, "100%"),
    ],
)
def test_only_a_full_cell_is_full_and_only_an_empty_one_empty(used, of, told):
    assert printed(bars([use("us", "cpu", used, of)], (("us",), ("cpu",)))).split()[-1] == told


def texts(document):
    return [element.text for element in ET.fromstring(document).iter() if element.tag.endswith("text")]


def test_the_svg_has_a_cell_for_each_supply_and_stands_alone(uses):
    document = svg(uses, AXES, "3 models")
    root = ET.fromstring(document)
    assert [child.text for child in root.iter("{http://www.w3.org/2000/svg}title")] == [
        "3 models",
        "us/cpu: 50 of 100 units used, 50 free",
        "us/l4: 8 of 8 units used, 0 free, surge 2",
        "eu/cpu: 120 of 100 units used, -20 free",
    ]
    assert {"3 models", "us", "eu", "cpu", "l4", "50 / 100", "8 / 8", "120 / 100", "·"} <= set(texts(document))
    assert document.count("http") == 1
    assert "surge of the transition" in texts(document)
    assert "surge of the transition" not in texts(svg(uses[:1], AXES, ""))


def test_the_svg_stays_within_its_frame(uses):
    root = ET.fromstring(svg(uses, AXES, "t"))
    width, height = float(root.get("width")), float(root.get("height"))
    for group in root.iter("{http://www.w3.org/2000/svg}g"):
        for rect in group.iter("{http://www.w3.org/2000/svg}rect"):
            assert 0 <= float(rect.get("x")) <= float(rect.get("x")) + float(rect.get("width")) <= width
            assert 0 <= float(rect.get("y")) <= float(rect.get("y")) + float(rect.get("height")) <= height


def test_the_fill_is_as_long_as_the_share(uses):
    group = next(ET.fromstring(svg(uses, AXES, "t")).iter("{http://www.w3.org/2000/svg}g"))
    _, track, fill = (float(rect.get("width")) for rect in group.iter("{http://www.w3.org/2000/svg}rect"))
    assert fill == pytest.approx(track / 2)


def test_names_are_escaped_and_the_same_plan_gives_the_same_picture():
    odd = [use("<us>&", '"l4"', 1.0, 2.0)]
    document = svg(odd, (("<us>&",), ('"l4"',)), "a < b & c")
    assert "a < b & c" in texts(document)
    assert document == svg(odd, (("<us>&",), ('"l4"',)), "a < b & c")


def test_large_figures_are_written_short():
    assert "123.6k / 2,000.0k" in texts(svg([use("us", "cpu", 123_600.0, 2e6)], AXES, ""))
