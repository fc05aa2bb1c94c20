"""Pages of the documentation: their prose, headings and links."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
FENCED = re.compile(r"^```.*?^```\n?", flags=re.MULTILINE | re.DOTALL)


def read(path):
    return path.read_text(encoding="utf-8")


def anchors(path):
    """Anchors of a page's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.+)$", FENCED.sub("", read(path)), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-") for heading in headings}


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
