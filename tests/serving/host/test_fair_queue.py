"""Parts take turns by the time that their passes take, and a crowd of one part does not keep another out."""

from collections import Counter
from dataclasses import dataclass

from serving.host.fair_queue import FairQueue


@dataclass
class Job:
    part: str
    number: int = 0


def filled(**counts):
    lines = FairQueue()
    for part, count in counts.items():
        for number in range(count):
            lines.add(Job(part, number))
    return lines


def serve(lines, seconds, passes):
    """The parts of so many passes of one request each."""
    order = []
    for _ in range(passes):
        line = lines.next()
        job = line.popleft()
        lines.put_back(line)
        lines.spend(job.part, seconds[job.part])
        order.append(job.part)
    return order


def test_one_line_is_served_in_the_order_of_arrival():
    lines = filled(a=3)
    line = lines.next()
    assert [job.number for job in line] == [0, 1, 2]
    assert len(lines) == 0


def test_parts_get_equal_time_whatever_waits_and_however_long_their_passes_are():
    order = serve(filled(long=100, short=100), {"long": 0.010, "short": 0.002}, 60)
    counts = Counter(order)
    assert 4 <= counts["short"] / counts["long"] <= 6


def test_one_that_comes_late_is_next_and_has_saved_up_nothing():
    lines = filled(crowd=100)
    serve(lines, {"crowd": 0.01}, 50)
    for number in range(10):
        lines.add(Job("late", number))
    order = serve(lines, {"crowd": 0.01, "late": 0.01}, 10)
    assert order[:2].count("late") >= 1
    assert 4 <= order.count("late") <= 6


def test_what_a_part_has_taken_counts_over_a_moment_without_its_requests():
    lines = filled(other=200)
    for number in range(20):
        lines.add(Job("greedy", number))
        order = serve(lines, {"greedy": 0.05, "other": 0.01}, 6)
        assert order.count("greedy") <= 2


def test_a_rest_lets_all_begin_anew():
    lines = filled(a=1)
    serve(lines, {"a": 100.0}, 1)
    lines.rest()
    lines.add(Job("b"))
    lines.add(Job("a"))
    assert sorted(serve(lines, {"a": 1.0, "b": 1.0}, 2)) == ["a", "b"]
    assert len(lines) == 0


def test_the_newest_of_the_longest_line_makes_place_but_not_for_a_line_as_long():
    lines = filled(crowd=5, few=1)
    job = lines.shed("few")
    assert (job.part, job.number) == ("crowd", 4)
    assert lines.shed("crowd") is None
    assert filled(a=2, b=1).shed("b") is None
    assert filled(a=2).shed("new").part == "a"
    assert FairQueue().shed("new") is None
