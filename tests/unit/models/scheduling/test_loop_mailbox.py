"""Calls reach the event loop in order, none is lost, and a batch of them wakes it once."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from typing import Any

import pytest

from models.scheduling.loop_mailbox import LoopMailbox

pytestmark = pytest.mark.anyio

_POSTS = 2000


class _CountedLoop:
    """Passes on, and counts how often it is woken."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self.wakes = 0

    def call_soon_threadsafe(self, call: Callable[[], Any]) -> asyncio.Handle:
        self.wakes += 1
        return self._loop.call_soon_threadsafe(call)


async def test_calls_are_made_on_the_loop_in_the_order_in_which_one_thread_posted_them() -> None:
    loop = asyncio.get_running_loop()
    inbox, made, done = LoopMailbox(loop), list[int](), asyncio.Event()

    def post() -> None:
        for number in range(_POSTS):
            inbox.post(lambda number=number: made.append(number))  # type: ignore[misc]
        inbox.post(done.set)

    await asyncio.to_thread(post)
    await done.wait()
    assert made == list(range(_POSTS))


async def test_no_call_is_lost_if_several_threads_post_while_the_loop_delivers() -> None:
    inbox, made, done = LoopMailbox(asyncio.get_running_loop()), list[int](), asyncio.Event()

    def make(number: int) -> None:
        made.append(number)
        if len(made) == 4 * _POSTS:
            done.set()

    def post() -> None:
        for number in range(_POSTS):
            inbox.post(lambda: make(number))  # noqa: B023 - only that it is made counts

    threads = [threading.Thread(target=post) for _ in range(4)]
    for thread in threads:
        thread.start()
    async with asyncio.timeout(30):
        await done.wait()
    for thread in threads:
        thread.join()


async def test_several_posts_wake_the_loop_once() -> None:
    counted = _CountedLoop(asyncio.get_running_loop())
    inbox, made = LoopMailbox(counted), list[int]()  # type: ignore[arg-type]
    for number in range(32):
        inbox.post(lambda number=number: made.append(number))  # type: ignore[misc]
    assert (counted.wakes, made) == (1, [])
    await asyncio.sleep(0)
    assert made == list(range(32))
    inbox.post(lambda: None)
    assert counted.wakes == 2


async def test_a_post_to_a_closed_loop_does_nothing() -> None:
    loop = asyncio.new_event_loop()
    loop.close()
    made: list[int] = []
    LoopMailbox(loop).post(lambda: made.append(1))
    assert made == []
