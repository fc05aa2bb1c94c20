"""What the summary of the tests' processor time tells."""

from collections import Counter

from tests.processor_time import MOST, spent_seconds, summarize


def test_the_summary_has_tiers_then_the_rest_then_the_files_and_tests_that_took_most():
    spent = Counter({"tests/a.py": 1.0, "tests/b.py": 30.0, "tier pure": 31.0, "tier e2e": 40.0, "imports": 12.0})
    spent.update({"tests/b.py::test_b[a.py]": 29.0, "tests/b.py::test_a": 30.0})

    assert summarize(spent) == [
        "    40.0  tier e2e",
        "    31.0  tier pure",
        "    12.0  imports",
        "    30.0  tests/b.py",
        "     1.0  tests/a.py",
        "    30.0  tests/b.py::test_a",
        "    29.0  tests/b.py::test_b[a.py]",
    ]


def test_the_summary_ends():
    assert len(summarize(Counter({f"tests/{number}.py": 1.0 for number in range(1000)}))) == MOST


def test_work_of_this_process_counts():
    before = spent_seconds()
    while spent_seconds() == before:
        sum(range(10**5))
