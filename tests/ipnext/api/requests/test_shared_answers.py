"""Answers that clients share.

Computed in the turn of any client that waits, each of which has a share of threads and places.
"""

import asyncio
import threading
from types import SimpleNamespace

import pytest

from ipnext.api.requests import shared_answers
from ipnext.api.requests.shared_answers import SharedAnswers
from ipnext.errors import RateLimited
from tests.waiting import PATIENCE_SECONDS, eventually


class Work:
    """Computations that last until they are let go."""

    def __init__(self):
        self.begun, self._go_on = [], threading.Event()

    def of(self, name):
        def make(_):
            self.begun.append(name)
            assert self._go_on.wait(PATIENCE_SECONDS)
            return name.encode()

        return make

    def let_go(self):
        self._go_on.set()


def answers():
    return SharedAnswers(lambda: SimpleNamespace(revision=1), lambda: "1")


async def test_a_client_with_many_pages_leaves_a_thread_to_others():
    made, work = answers(), Work()
    tasks = [
        asyncio.create_task(made.get(("greedy", n), work.of("greedy"), holder="greedy"))
        for n in range(shared_answers.THREADS)
    ]
    await eventually(lambda: work.begun)
    tasks.append(asyncio.create_task(made.get("other", work.of("other"), holder="other")))
    await eventually(lambda: len(work.begun) == shared_answers.THREADS)
    assert work.begun == ["greedy", "other"]
    work.let_go()
    assert [found.body for found in await asyncio.gather(*tasks)] == [b"greedy", b"greedy", b"other"]


@pytest.mark.parametrize("written", [False, True], ids=["same", "written since"])
async def test_a_client_does_not_wait_for_the_other_pages_of_another(written):
    mark = ["1"]
    made, work = SharedAnswers(lambda: SimpleNamespace(revision=1), lambda: mark[0]), Work()
    others = [asyncio.create_task(made.get(name, work.of(name), holder="greedy")) for name in "abcd"]
    first = asyncio.create_task(made.get("page", work.of("page"), holder="greedy"))
    await eventually(lambda: "page" in made._flights)
    mark[0] = "2" if written else "1"

    second = asyncio.create_task(made.get("page", work.of("page again"), holder="other"))

    await eventually(lambda: len(work.begun) == shared_answers.THREADS)
    assert work.begun == ["a", "page"]
    work.let_go()
    assert [found.body for found in await asyncio.gather(first, second)] == [
        b"page",
        b"page again" if written else b"page",
    ]
    await asyncio.gather(*others)
    assert work.begun.count("page") == 1
    for name in ("greedy", "other"):  # no turn is left behind
        assert (await made.get(("later", name), work.of(name), holder=name)).body == name.encode()


async def test_a_page_that_fails_fails_for_all_that_wait_and_ends_their_turns():
    made = answers()

    def fail(_):
        raise KeyError

    tasks = [asyncio.create_task(made.get("page", fail, holder=name)) for name in ("one", "other")]

    found = await asyncio.gather(*tasks, return_exceptions=True)

    assert [type(error) for error in found] == [KeyError, KeyError]
    assert len(made._slots) == 0
    assert not made._flights


async def test_a_client_has_a_quarter_of_the_answers_that_wait():
    made, work = answers(), Work()
    most = shared_answers.WAITING // 4
    tasks = [asyncio.create_task(made.get(n, work.of("greedy"), holder="greedy")) for n in range(most)]
    await eventually(lambda: len(made._slots) == most)
    with pytest.raises(RateLimited, match=f"{most} different answers"):
        await made.get("one more", work.of("greedy"), holder="greedy")
    again = asyncio.create_task(made.get(0, work.of("again"), holder="greedy"))
    other = asyncio.create_task(made.get("other", work.of("other"), holder="other"))
    await eventually(lambda: "other" in work.begun)
    work.let_go()
    await asyncio.gather(*tasks, again, other)
    assert len(made._slots) == 0
