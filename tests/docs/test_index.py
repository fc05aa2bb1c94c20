"""docs/README.md lists each page once; links between pages resolve, and paths that they name exist."""

import re

import pytest

from tests.docs.pages import DOCS, ROOT, broken_links, links, paths, read

INDEX = DOCS / "README.md"
ENTRY = re.compile(r"- \[[^\]]+\]\(([^)#]+)\): (.+)")
PAGES = sorted(page for page in DOCS.rglob("*.md") if page != INDEX and not {"decisions", "images"} & set(page.parts))
OTHERS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "examples" / "README.md", INDEX]
GROUPS = ["Get started", "Concepts", "Guides", "Operations", "Reference", "Design", "Benchmarks"]
READERS = ["model owners", "developers of models", "operators of a platform", "administrators of access"]

FOLDERS = {"activities", "benchmarks", "demo", "docs", "examples", "ipnext", "planner", "serving", "tests", "workflows"}
ELSEWHERE = {"ipnext/credentials.json"}
"""In a directory of the user's."""


def entries():
    """Each entry: its page and its line."""
    lines = [line for line in read(INDEX).splitlines() if line.startswith("-")]
    return [ENTRY.fullmatch(line).groups() for line in lines]


def test_every_page_is_listed_once():
    assert sorted(page for page, _ in entries()) == [str(page.relative_to(DOCS)) for page in PAGES]


def test_an_entry_has_one_short_line():
    assert [page for page, line in entries() if not line.endswith(".") or len(line) > 100] == []


def test_pages_are_grouped_by_purpose_and_guides_by_reader():
    text = read(INDEX)
    assert re.findall(r"^## (.+)$", text, flags=re.MULTILINE) == GROUPS
    assert re.findall(r"^### For (.+)$", text, flags=re.MULTILINE) == READERS


def test_the_readme_links_the_index():
    assert "docs/README.md" in links(read(ROOT / "README.md"))


EVERY_PAGE = pytest.mark.parametrize(
    "page", [*OTHERS, *PAGES, *sorted((DOCS / "decisions").glob("*.md"))], ids=lambda page: str(page.relative_to(ROOT))
)


@EVERY_PAGE
def test_every_link_of_a_page_resolves(page):
    assert broken_links(page) == []


@EVERY_PAGE
def test_every_path_of_the_repository_that_a_page_names_exists(page):
    named = (path for path in paths(read(page)) - ELSEWHERE if path.split("/")[0] in FOLDERS)
    assert [path for path in named if not (ROOT / path).exists()] == []
