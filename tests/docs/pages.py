"""Pages of the documentation: their prose, headings and links."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
PATH = re.compile(r"(?<![\w./:-])(?:(?:[\w.-]+/)+(?:[\w.-]*\w)?|[\w-]+\.(?:md|py|toml|yaml)\b)")
"""A path with a slash, or the name of a file of a known kind."""
FENCED = re.compile(r"^```.*?^```\n?", flags=re.MULTILINE | re.DOTALL)


def read(path):
    return path.read_text(encoding="utf-8")


def anchors(path):
    """Anchors of a page's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.+)$", FENCED.sub("", read(path)), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-") for heading in headings}


def paths(text):
    """Paths that the code spans of a text name."""
    return {path for span in re.findall(r"`([^`\n]+)`", FENCED.sub("", text)) for path in PATH.findall(span)}


def links(text):
    """Targets of the links to files; those to other sites are left out."""
    return [target for target in re.findall(r"\]\(([^)\s]+)\)", text) if "://" not in target]


def broken_links(path):
    """Links of a page to files or headings that do not exist."""
    broken = []
    for target in links(FENCED.sub("", read(path))):
        name, _, anchor = target.partition("#")
        page = (path.parent / name).resolve() if name else path
        if not page.exists() or (anchor and anchor not in anchors(page)):
            broken.append(target)
    return broken
