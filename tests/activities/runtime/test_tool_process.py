"""What is reported of a tool's process that has ended."""

from pathlib import Path

from activities.runtime.tool_process import LAST_WORDS, ToolRun


def test_last_words_are_bounded_since_they_repeat_names_of_a_snapshot():
    long = ToolRun(2, Path("answer.json"), "warning\nerror: labels:" + "x" * 10_000_000)
    assert len(long.last_words) == LAST_WORDS
    assert long.last_words.startswith("labels:xxx")
    assert ToolRun(2, Path("answer.json"), "warning\nerror: no table").last_words == "no table"
    assert ToolRun(2, Path("answer.json"), "").last_words == "it said nothing"
