"""A channel carries whole objects of any size, and file descriptors with those that have some."""

from __future__ import annotations

import asyncio
import os
import pickle
import resource
import threading
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from models.interface.errors import OutOfMemoryError
from models.workers import channel
from models.workers.channel import Channel, socket_pair
from models.workers.messages import Answers

_TIMEOUT_S = 30


class _Receiver:
    """Keeps what arrives."""

    def __init__(self) -> None:
        self.received: asyncio.Queue[tuple[Any, list[int]]] = asyncio.Queue()
        self.ended: asyncio.Future[Exception | None] = asyncio.get_running_loop().create_future()

    def on_message(self, message: Any, descriptors: list[int]) -> None:
        self.received.put_nowait((message, descriptors))

    async def messages(self, number: int) -> list[Any]:
        return [(await self.received.get())[0] for _ in range(number)]


def _between_two(
    scenario: Callable[[Channel, _Receiver, Channel, _Receiver], Coroutine[Any, Any, None]],
) -> None:
    async def run() -> None:
        receivers = _Receiver(), _Receiver()
        one, other = (
            Channel(end, receiver.on_message, receiver.ended.set_result)
            for end, receiver in zip(socket_pair(), receivers, strict=True)
        )
        await asyncio.wait_for(scenario(one, receivers[0], other, receivers[1]), _TIMEOUT_S)
        one.close()
        other.close()

    asyncio.run(run())


def test_objects_arrive_in_order_whatever_their_size() -> None:
    async def scenario(one: Channel, at_one: _Receiver, other: Channel, at_other: _Receiver) -> None:
        large = os.urandom(5_000_000)
        for message in ("first", large, None, large[::-1], "last"):
            one.send(message)
        other.send("meanwhile")
        assert await at_other.messages(5) == ["first", large, None, large[::-1], "last"]
        assert await at_one.messages(1) == ["meanwhile"]

    _between_two(scenario)


def test_a_large_message_needs_no_file_descriptor() -> None:
    async def scenario(one: Channel, _at_one: _Receiver, _other: Channel, at_other: _Receiver) -> None:
        large = os.urandom(300_000)
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        # Lower than what is open: no call gets another descriptor.
        resource.setrlimit(resource.RLIMIT_NOFILE, (3, hard))
        try:
            one.send(large)
            assert await at_other.messages(1) == [large]
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))

    _between_two(scenario)


def test_large_messages_of_two_threads_do_not_mix() -> None:
    async def scenario(one: Channel, _at_one: _Receiver, _other: Channel, at_other: _Receiver) -> None:
        messages = [bytes([number]) * 2_000_000 for number in range(4)]
        threads = [threading.Thread(target=one.send, args=(message,)) for message in messages]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(_TIMEOUT_S)
        assert sorted(await at_other.messages(4)) == messages

    _between_two(scenario)


def test_an_error_keeps_its_facts() -> None:
    async def scenario(one: Channel, _at_one: _Receiver, _other: Channel, at_other: _Receiver) -> None:
        one.send(Answers(3, None, [(9, 2**40, OutOfMemoryError("tiny"))]))
        [answers] = await at_other.messages(1)
        [(slot, generation, error)] = answers.results
        assert (answers.version, slot, generation) == (3, 9, 2**40)
        assert isinstance(error, OutOfMemoryError)
        assert str(error) == str(OutOfMemoryError("tiny"))

    _between_two(scenario)


def test_sending_never_blocks_and_each_threads_messages_arrive_in_order() -> None:
    async def scenario(one: Channel, _at_one: _Receiver, _other: Channel, at_other: _Receiver) -> None:
        def send(thread: int) -> None:
            for number in range(300):
                one.send((thread, number, bytes(5_000)))

        # The other end is on this event loop and reads nothing until the threads have ended.
        threads = [threading.Thread(target=send, args=(thread,)) for thread in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(_TIMEOUT_S)
        assert not any(thread.is_alive() for thread in threads)
        received = await at_other.messages(900)
        for sender in range(3):
            assert [number for each, number, _ in received if each == sender] == list(range(300))

    _between_two(scenario)


def test_a_message_that_found_the_socket_full_is_not_overtaken_while_it_is_sent(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def scenario(one: Channel, _at_one: _Receiver, _other: Channel, at_other: _Receiver) -> None:
        sent = Channel._sent  # noqa: SLF001
        monkeypatch.setattr(Channel, "_sent", lambda *_: False)
        one.send("first")

        def overtake(channel: Channel, packet: Any) -> bool:
            monkeypatch.setattr(Channel, "_sent", sent)
            channel.send("second")
            return sent(channel, packet)

        monkeypatch.setattr(Channel, "_sent", overtake)
        assert await at_other.messages(2) == ["first", "second"]

    _between_two(scenario)


@pytest.mark.parametrize("before", [0, 5_000_000], ids=["alone", "behind-a-large-message"])
def test_descriptors_arrive_with_their_message_and_stay_the_senders(before: int) -> None:
    async def scenario(one: Channel, _at_one: _Receiver, _other: Channel, at_other: _Receiver) -> None:
        read, write = os.pipe()
        one.send(bytes(before))
        one.send(bytes(before), [write])
        assert await at_other.received.get() == (bytes(before), [])
        message, [received] = await at_other.received.get()
        assert message == bytes(before)
        os.write(received, b"theirs ")
        os.write(write, b"and ours")
        assert os.read(read, 100) == b"theirs and ours"
        for descriptor in (read, write, received):
            os.close(descriptor)

    _between_two(scenario)


def test_the_end_is_reported_once_when_the_other_end_closes_and_sending_does_nothing_then() -> None:
    async def scenario(one: Channel, at_one: _Receiver, other: Channel, at_other: _Receiver) -> None:
        one.send("last")
        one.close()
        assert await at_other.ended is None
        assert await at_other.messages(1) == ["last"]
        other.send("never received")
        one.send("never received")
        assert not at_one.ended.done()

    _between_two(scenario)


def test_sending_to_a_process_that_has_ended_reports_the_end() -> None:
    async def run() -> None:
        here, there = socket_pair()
        receiver = _Receiver()
        channel = Channel(here, receiver.on_message, receiver.ended.set_result)
        there.close()
        channel.send("never received")
        assert await asyncio.wait_for(receiver.ended, _TIMEOUT_S) is None

    asyncio.run(run())


def test_a_message_that_cannot_be_read_ends_the_channel_with_its_error() -> None:
    async def scenario(one: Channel, at_one: _Receiver, _other: Channel, at_other: _Receiver) -> None:
        one.send("first")
        one._socket.send(channel._HEAD.pack(2**32 - 1, False) + b"no pickle")  # noqa: SLF001
        one.send("never processed")
        assert isinstance(await at_other.ended, pickle.UnpicklingError)
        assert await at_one.ended is None
        assert at_other.received.qsize() == 1

    _between_two(scenario)


def test_the_descriptor_of_a_channel_stays_open_while_a_thread_sends(monkeypatch: pytest.MonkeyPatch) -> None:
    sending, release = threading.Event(), threading.Event()
    sent = Channel._sent  # noqa: SLF001

    def held(channel: Channel, packet: Any) -> bool:
        sending.set()
        assert release.wait(_TIMEOUT_S)
        return sent(channel, packet)

    async def run() -> None:
        here, there = socket_pair()
        channel = Channel(here, lambda *_: None, lambda _: None)
        monkeypatch.setattr(Channel, "_sent", held)
        thread = threading.Thread(target=channel.send, args=("late",))
        thread.start()
        assert sending.wait(_TIMEOUT_S)
        channel.close()
        del channel
        # Otherwise another file could get the descriptor's number before the thread writes to it.
        assert here.fileno() >= 0
        release.set()
        thread.join(_TIMEOUT_S)
        # The thread object has held the method of the channel until now.
        del thread
        assert here.fileno() < 0
        there.close()

    asyncio.run(run())


def test_waiting_blocks_the_thread_until_a_message_was_processed() -> None:
    here, there = socket_pair()
    read, write = os.pipe()

    async def send() -> None:
        channel = Channel(here, lambda *_: None, lambda _: None)
        channel.send("first", [read])
        channel.close()

    async def receive() -> None:
        receiver = _Receiver()
        channel = Channel(there, receiver.on_message, receiver.ended.set_result)
        while receiver.received.empty():
            channel.wait()
        message, [descriptor] = receiver.received.get_nowait()
        assert message == "first"
        os.write(write, b"x")
        assert os.read(descriptor, 1) == b"x"
        os.close(descriptor)
        channel.close()

    asyncio.run(send())
    asyncio.run(receive())
    for each in (read, write):
        os.close(each)
