"""No owner takes all slots of a queue, or all places that a worker has for heavy work."""

import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import replace

import pytest
from temporalio.testing import ActivityEnvironment

from activities.runtime.owner_turns import OwnerPlaces, OwnerShares, ShareTaken
from tests.waiting import PATIENCE_SECONDS, until


def on(queue, work):
    """Run work as an activity of a queue."""
    environment = ActivityEnvironment()
    environment.info = replace(environment.info, task_queue=queue)
    return environment.run(work)


def hold(shares, owner, number, *, queue="q"):
    """Hold so many slots until the stack that is returned is closed."""
    stack = ExitStack()
    for _ in range(number):
        on(queue, lambda: stack.enter_context(shares.hold(owner)))
    return stack


def test_an_owner_holds_a_fourth_of_the_slots_and_another_one_too():
    shares = OwnerShares({"q": 8})
    told = "other work of owner 'a' takes its share of a worker, 2 at once"
    with hold(shares, "a", 2), hold(shares, "b", 2), pytest.raises(ShareTaken, match=told):
        hold(shares, "a", 1)


def test_the_share_is_free_again_after_the_work_and_after_an_error():
    shares = OwnerShares({"q": 4})
    for _ in range(3):
        with pytest.raises(ZeroDivisionError), hold(shares, "a", 1):
            1 / 0  # noqa: B018
    hold(shares, "a", 1).close()
    assert not shares._held, "nothing is kept of owners without work"


def test_an_owner_always_has_a_slot():
    with hold(OwnerShares({"q": 1}), "a", 1):
        pass


def test_each_queue_has_shares_of_its_own_and_others_are_not_bounded():
    shares = OwnerShares({"q": 4, "r": 4})
    with hold(shares, "a", 1), hold(shares, "a", 1, queue="r"), hold(shares, "a", 9, queue="other"):
        pass


def test_a_taken_share_is_an_error_that_is_tried_again():
    assert ShareTaken.retryable


class Worker:
    """Threads that take places; each holds its place until it is told to end."""

    def __init__(self, number):
        self.places = OwnerPlaces(number)
        self.inside, self.waited = [], []
        self._end = {}
        self._threads = ThreadPoolExecutor(16)

    def begin(self, name, owner, *, beat=None):
        self._end[name] = threading.Event()

        def work():
            with self.places.take(owner, beat or self.waited.append, name):
                self.inside.append(name)
                self._end[name].wait(PATIENCE_SECONDS)
                self.inside.remove(name)

        work_done = self._threads.submit(work)
        until(lambda: name in self.inside or name in self.waited or work_done.done())
        return work_done

    def end(self, name):
        self._end[name].set()

    def close(self):
        for event in self._end.values():
            event.set()
        self._threads.shutdown()


@pytest.fixture
def worker():
    found = Worker(2)
    yield found
    found.close()


def test_one_owner_has_one_of_the_places(worker):
    for number in range(3):
        worker.begin(f"a{number}", "a")
    worker.begin("b0", "b")
    assert sorted(worker.inside) == ["a0", "b0"]


def test_owners_that_wait_come_by_turns(worker):
    for name in ("a0", "b0", "a1", "a2", "c0"):
        worker.begin(name, name[0])
    worker.end("a0")
    until(lambda: sorted(worker.inside) == ["a1", "b0"])
    worker.end("b0")
    until(lambda: sorted(worker.inside) == ["a1", "c0"])
    worker.end("a1")
    until(lambda: sorted(worker.inside) == ["a2", "c0"])


def test_work_that_was_cancelled_while_it_waited_leaves_its_turn(worker):
    def cancelled(_):
        raise KeyError

    worker.begin("a0", "a")
    with pytest.raises(KeyError):
        worker.begin("a1", "a", beat=cancelled).result()
    worker.begin("a2", "a")
    worker.end("a0")
    until(lambda: worker.inside == ["a2"])


def test_nothing_is_kept_of_work_that_ended():
    places = OwnerPlaces(2)
    with places.take("a", pytest.fail, "x"), places.take("b", pytest.fail, "y"):
        pass
    assert (places._free, places._inside, dict(places._waiting)) == (2, set(), {})
