"""A channel carries whole objects of any size, and file descriptors with those that have some."""

from __future__ import annotations

import asyncio
import os
import pickle
import socket
from collections import deque
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from models.interface.errors import OutOfMemoryError
from models.interface.request import InferenceRequest
from models.interface.telemetry import BatchReport
from models.workers.channel import Channel, FrameReader, frame
from models.workers.messages import Answers, Failure, Submission

_TIMEOUT_S = 30
_ANSWERS = Answers(
    3, BatchReport("tiny", 5, "full", 12.25, 0.5, 0.25, 2), [(7, 5, 2**40, 0.125, True), (0, 0, 1, 0.0, False)]
)
_BROKEN = b"\x03\0\0\0\0\0\0\0abc"


class _Receiver:
    """Keeps what arrives. A string has as many descriptors as it has plus signs."""

    def __init__(self) -> None:
        self.received: asyncio.Queue[tuple[Any, list[int]]] = asyncio.Queue()
        self.ended = asyncio.Event()

    def on_end(self, _error: Exception | None) -> None:
        self.ended.set()

    def on_message(self, message: Any, descriptors: deque[int]) -> None:
        own = message.count("+") if isinstance(message, str) else 0
        self.received.put_nowait((message, [descriptors.popleft() for _ in range(own)]))


def _between_two(
    scenario: Callable[[Channel, _Receiver, Channel, _Receiver], Coroutine[Any, Any, None]],
) -> None:
    async def run() -> None:
        receivers = _Receiver(), _Receiver()
        one, other = (
            Channel(end, receiver.on_message, receiver.on_end)
            for end, receiver in zip(socket.socketpair(), receivers, strict=True)
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
        assert [(await at_other.received.get())[0] for _ in range(5)] == ["first", large, None, large[::-1], "last"]
        assert (await at_one.received.get())[0] == "meanwhile"

    _between_two(scenario)


def test_objects_of_several_threads_arrive_whole_and_each_threads_in_order() -> None:
    async def scenario(one: Channel, _at_one: _Receiver, _other: Channel, at_other: _Receiver) -> None:
        def send(thread: int) -> None:
            for number in range(50):
                one.send((thread, number, bytes(20_000)))

        sending = [asyncio.create_task(asyncio.to_thread(send, thread)) for thread in range(3)]
        received = [(await at_other.received.get())[0] for _ in range(150)]
        await asyncio.gather(*sending)
        for thread in range(3):
            assert [number for each, number, _ in received if each == thread] == list(range(50))

    _between_two(scenario)


def test_descriptors_arrive_with_their_message_and_stay_the_senders() -> None:
    async def scenario(one: Channel, _at_one: _Receiver, _other: Channel, at_other: _Receiver) -> None:
        read, write = os.pipe()
        one.send("none")
        one.send("one+", [write])
        assert await at_other.received.get() == ("none", [])
        message, [received] = await at_other.received.get()
        assert message == "one+"
        os.write(received, b"theirs ")
        os.write(write, b"and ours")
        assert os.read(read, 100) == b"theirs and ours"
        for descriptor in (read, write, received):
            os.close(descriptor)

    _between_two(scenario)


def test_descriptors_arrive_with_a_message_that_waits_for_room() -> None:
    async def scenario(one: Channel, _at_one: _Receiver, _other: Channel, at_other: _Receiver) -> None:
        read, write = os.pipe()
        large = bytes(5_000_000)
        one.send(large)
        one.send("one+", [write])
        assert (await at_other.received.get())[0] == large
        message, [received] = await at_other.received.get()
        assert message == "one+"
        for descriptor in (read, write, received):
            os.close(descriptor)

    _between_two(scenario)


def test_the_end_is_reported_once_when_the_other_end_closes_and_sending_does_nothing_then() -> None:
    async def scenario(one: Channel, at_one: _Receiver, other: Channel, at_other: _Receiver) -> None:
        one.send("last")
        one.close()
        await at_other.ended.wait()
        assert (await at_other.received.get())[0] == "last"
        other.send("never received")
        one.send("never received")
        assert not at_one.ended.is_set()

    _between_two(scenario)


def test_waiting_blocks_the_thread_until_a_message_was_processed() -> None:
    here, there = socket.socketpair()
    read, write = os.pipe()

    async def send() -> None:
        channel = Channel(here, lambda *_: None, lambda _: None)
        channel.send("first+", [read])
        channel.close()

    async def receive() -> None:
        receiver = _Receiver()
        channel = Channel(there, receiver.on_message, receiver.on_end)
        while receiver.received.empty():
            channel.wait()
        message, [descriptor] = receiver.received.get_nowait()
        assert message == "first+"
        os.write(write, b"x")
        assert os.read(descriptor, 1) == b"x"
        os.close(descriptor)
        channel.close()

    asyncio.run(send())
    asyncio.run(receive())
    for each in (read, write):
        os.close(each)


@pytest.mark.parametrize("step", [1, 7, 1000])
def test_messages_are_read_out_of_pieces_of_any_size(step: int) -> None:
    submission = Submission(1, 300, 2**40, InferenceRequest("classify", top_k=5, fairness_key=2**63 + 7))
    sent = frame(submission) + frame(_ANSWERS) + frame(Failure(3, 9, 2**40, OutOfMemoryError("tiny")))
    sent += frame(Failure(4, 1, 5, None))
    reader = FrameReader()

    received = [message for at in range(0, len(sent), step) for message in reader.feed(sent[at : at + step])]

    failure = received.pop(2)
    assert received == [submission, _ANSWERS, Failure(4, 1, 5, None)]
    assert isinstance(failure.error, OutOfMemoryError)
    assert str(failure.error) == str(OutOfMemoryError("tiny"))
    assert (failure.version, failure.slot, failure.generation) == (3, 9, 2**40)


def test_a_message_is_yielded_once_even_if_processing_it_fails() -> None:
    reader = FrameReader()

    def process(received: bytes) -> list[int]:
        slots = []
        for message in reader.feed(received):
            if message.slot == 1:
                raise KeyError(message.slot)
            slots.append(message.slot)
        return slots

    first, second, third = (frame(Failure(0, slot, 1, None)) for slot in range(3))
    with pytest.raises(KeyError):
        process(first + second)

    assert process(third) == [2]
    assert process(b"") == []


def test_a_message_that_cannot_be_unpickled_is_not_read_again() -> None:
    reader = FrameReader()
    with pytest.raises(pickle.UnpicklingError):
        list(reader.feed(_BROKEN + frame(Failure(0, 4, 1, None))))

    assert list(reader.feed(b"")) == [Failure(0, 4, 1, None)]
