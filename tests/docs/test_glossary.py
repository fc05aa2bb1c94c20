"""docs/glossary.md explains each term once, with a link that resolves; the pages use its words."""

import re

import pytest

from tests.docs.pages import DOCS, FENCED, ROOT, broken_links, links, read

GLOSSARY = DOCS / "glossary.md"

MOST = {
    "all the same": 0,
    "anew": 2,
    "beside": 9,
    "front door": 0,
    "gives way": 0,
    "goes back": 0,
    "goes over": 0,
    "hears": 0,
    "in vain": 0,
    "is told": 1,
    "makes pointless": 0,
    "meanwhile": 0,
    "nobody": 0,
    "on its way": 0,
    "put out": 0,
    "sent around": 0,
    "shall": 0,
    "stands on": 1,
    "the record": 1,
    "way back": 1,
    "whoever": 2,
}
"""Discouraged words -> how often docs/*.md may have them. Lower a number when a page is reworded; never raise one."""


def groups():
    """Heading of each group, with its rows: term, meaning, page, words that are not used."""
    for section in read(GLOSSARY).split("\n## ")[1:]:
        heading, *lines = section.splitlines()
        rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines if line.startswith("|")]
        yield heading, rows[2:]


def prose(path):
    """A page without code; of the glossary without the column of words that are not used."""
    text = read(path)
    if path == GLOSSARY:
        text = re.sub(r"\| [^|\n]*\|$", "|", text, flags=re.MULTILINE)
    return re.sub(r"`[^`\n]*`", "", FENCED.sub("", text))


def count(words, texts):
    pattern = re.compile(rf"\b{words.replace(' ', chr(92) + 's+')}\b", flags=re.IGNORECASE)
    return sum(len(pattern.findall(text)) for text in texts)


@pytest.mark.parametrize(("heading", "rows"), [pytest.param(*group, id=group[0]) for group in groups()])
def test_the_terms_of_a_group_are_alphabetical_and_each_has_one_page(heading, rows):
    terms = [term for term, *_ in rows]
    assert terms == sorted(terms, key=str.lower)
    assert [term for term, _, page, _ in rows if len(links(page)) != 1] == []


def test_no_term_is_explained_twice():
    terms = [term for _, rows in groups() for term, *_ in rows]
    assert len(terms) > 60
    assert len(terms) == len(set(terms))


def test_an_explanation_has_at_most_three_sentences_of_25_words():
    for _, rows in groups():
        for term, meaning, *_ in rows:
            sentences = re.split(r"[.;] ", meaning)
            assert len(sentences) <= 3, term
            assert max(len(sentence.split()) for sentence in sentences) <= 25, term


def test_every_link_of_the_glossary_resolves():
    assert broken_links(GLOSSARY) == []


def test_the_readme_links_the_glossary():
    assert "docs/glossary.md" in links(read(ROOT / "README.md"))


@pytest.mark.parametrize("words", MOST)
def test_pages_have_a_discouraged_word_no_more_often_than_before(words):
    texts = [prose(path) for path in sorted(DOCS.glob("*.md"))]
    assert count(words, texts) <= MOST[words], f"{words!r}: docs/glossary.md has the word to use"
