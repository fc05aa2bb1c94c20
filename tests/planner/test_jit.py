"""Kernels on several threads."""

import threading

from planner.jit import SLICE, side_by_side


def test_the_first_slice_of_a_new_work_goes_alone():
    """Two threads that compile a kernel into a cold cache at once can spoil it."""
    began, ended, main = [], [], threading.current_thread()

    def work(begin, end):
        began.append((threading.current_thread() is main, list(ended)))
        ended.append((begin, end))

    side_by_side(10 * SLICE, work)
    assert began[0] == (True, [])
    assert all((0, SLICE) in before for _, before in began[1:])
    assert sorted(ended) == [(begin, begin + SLICE) for begin in range(0, 10 * SLICE, SLICE)]
    assert not all(alone for alone, _ in began[1:]), "the others go side by side"


def test_all_slices_of_a_known_work_go_side_by_side():
    threads = set()

    def work(_begin, _end):
        threads.add(threading.current_thread())

    for _ in range(2):
        threads.clear()
        side_by_side(2 * SLICE + 1, work)
    assert threading.current_thread() not in threads
    side_by_side(0, work)
