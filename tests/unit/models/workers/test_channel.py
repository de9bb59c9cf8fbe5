"""Channels carry whole objects, of any size, and file descriptors with those that have some."""

from __future__ import annotations

import asyncio
import os
import socket
from collections import deque
from collections.abc import Callable
from typing import Any

from models.workers.channel import Channel, receive_first


class _Ear:
    def __init__(self) -> None:
        self.heard: asyncio.Queue[tuple[Any, list[int]]] = asyncio.Queue()
        self.ended = asyncio.Event()
        self.error: Exception | None = None

    def end(self, error: Exception | None) -> None:
        self.error = error
        self.ended.set()

    def hear(self, message: Any, descriptors: deque[int]) -> None:
        its_own = message.count("+") if isinstance(message, str) else 0
        self.heard.put_nowait((message, [descriptors.popleft() for _ in range(its_own)]))


def _between_two(talk: Callable[[Channel, _Ear, Channel, _Ear], Any]) -> None:
    async def run() -> None:
        here, there = socket.socketpair()
        ears = _Ear(), _Ear()
        one, other = (Channel(end, ear.hear, ear.end) for end, ear in zip((here, there), ears, strict=True))
        await asyncio.wait_for(talk(one, ears[0], other, ears[1]), 30)
        one.close()
        other.close()

    asyncio.run(run())


def test_objects_arrive_in_order_whatever_their_size() -> None:
    async def talk(one: Channel, own: _Ear, other: Channel, ear: _Ear) -> None:
        large = os.urandom(5_000_000)
        for message in ("first", large, None, large[::-1], "last"):
            one.send(message)
        other.send("meanwhile")
        assert [(await ear.heard.get())[0] for _ in range(5)] == ["first", large, None, large[::-1], "last"]
        assert (await own.heard.get())[0] == "meanwhile"

    _between_two(talk)


def test_descriptors_come_with_their_message_and_stay_the_senders() -> None:
    async def talk(one: Channel, _own: _Ear, _other: Channel, ear: _Ear) -> None:
        read, write = os.pipe()
        one.send("none")
        one.send("one+", [write])
        assert await ear.heard.get() == ("none", [])
        message, [received] = await ear.heard.get()
        assert message == "one+"
        os.write(received, b"theirs ")
        os.write(write, b"and ours")
        assert os.read(read, 100) == b"theirs and ours"
        for descriptor in (read, write, received):
            os.close(descriptor)

    _between_two(talk)


def test_an_end_hears_once_that_the_other_is_gone_and_may_still_talk_to_nobody() -> None:
    async def talk(one: Channel, own: _Ear, other: Channel, ear: _Ear) -> None:
        one.send("farewell")
        one.close()
        await ear.ended.wait()
        assert (await ear.heard.get())[0] == "farewell"
        other.send("nobody hears")
        one.send("nobody hears")
        assert not own.ended.is_set()

    _between_two(talk)


def test_the_first_message_is_read_before_there_is_a_loop_and_nothing_after_it() -> None:
    here, there = socket.socketpair()
    read, write = os.pipe()

    async def send() -> None:
        channel = Channel(here, lambda *_: None, lambda _: None)
        channel.send({"first": 1}, [read])
        channel.send("second")
        channel.close()

    asyncio.run(send())
    message, [descriptor] = receive_first(there)
    os.write(write, b"x")

    assert message == {"first": 1}
    assert os.read(descriptor, 1) == b"x"
    ear = _Ear()

    async def hear() -> None:
        channel = Channel(there, ear.hear, ear.end)
        assert (await asyncio.wait_for(ear.heard.get(), 30))[0] == "second"
        channel.close()

    asyncio.run(hear())
    for each in (read, write, descriptor):
        os.close(each)
