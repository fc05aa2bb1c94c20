"""CONTRIBUTING.md names files, make verbs and layers that exist."""

import re
import tomllib

import pytest

from tests.docs.pages import PATH, ROOT, broken_links, links, paths, read

PAGE = ROOT / "CONTRIBUTING.md"
TEXT = read(PAGE)
CODE = re.findall(r"`([^`\n]+)`", TEXT)
PATHS = sorted(paths(TEXT))


def section(heading):
    return TEXT.split(f"\n## {heading}\n")[1].split("\n## ")[0]


def test_paths_are_found_in_the_page():
    assert len(PATHS) > 70
    assert {"pyproject.toml", "ipnext/store", "serving/genai/", "tests/planner/test_solve.py"} <= set(PATHS)


@pytest.mark.parametrize("path", PATHS)
def test_a_path_that_is_named_exists(path):
    found = ROOT / path
    assert found.is_dir() if path.endswith("/") else found.exists()


def test_links_resolve():
    assert broken_links(PAGE) == []


def test_the_readme_links_it():
    assert "CONTRIBUTING.md" in links(read(ROOT / "README.md"))


def test_make_verbs_exist():
    verbs = set(re.findall(r"^([a-z0-9-]+):.*## ", read(ROOT / "Makefile"), flags=re.MULTILINE))
    named = {
        verb
        for span in CODE
        if span.startswith("make ")
        for verb in re.findall(r"(?<= )[a-z][a-z-]*(?= |$)", span.split(" ARGS")[0])
    }
    assert named
    assert named <= verbs


def test_the_layers_are_those_of_the_import_contract():
    contracts = tomllib.loads(read(ROOT / "pyproject.toml"))["tool"]["importlinter"]["contracts"]
    (layers,) = [c["layers"] for c in contracts if c["type"] == "layers" and c["layers"][0] == "demo"]
    rows = re.findall(r"^\| `(\w+)` \|", section("Layers").split("| contract |")[0], flags=re.MULTILINE)
    assert rows == [name for layer in layers for name in layer.split(" | ")]


def test_each_of_ten_questions_is_answered_by_a_path():
    rows = re.findall(r"^\| ([^|]+\?) \| (.+) \|$", section("Ten questions"), flags=re.MULTILINE)
    assert len(rows) == 10
    assert [question for question, answer in rows if not PATH.search(answer)] == []


def test_each_place_for_new_code_names_a_test():
    places = section("Where new code goes").split("\n### ")[1:]
    assert len(places) == 8
    assert [place.split("\n")[0] for place in places if "`tests/" not in place] == []
