"""What goes over the sockets of images between a front and the engine process: who waits in which slot, and who has
been answered. The bytes of images and answers are in the slots."""

from __future__ import annotations

import pickle
import struct
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple, get_args

from models.telemetry import BatchReport, Trigger

_TRIGGERS: tuple[Trigger, ...] = get_args(Trigger)

# The number of the model's version, the slot, how many classes, and whose image it is.
_SUBMISSION = struct.Struct("<IIIxxxxQ")
SUBMISSION_BYTES = _SUBMISSION.size

_FRAME = struct.Struct("<IB")
_ANSWERS, _FAILURE = 0, 1

# The version, how many of this front's, then what BatchReport has.
_BATCH = struct.Struct("<IIIBxxxIddd")
# The slot, how many classes, whether its numbers are finite, and the seconds it waited.
_ANSWER = struct.Struct("<IIBxxxxxxxd")


class Submission(NamedTuple):
    """An image is decoded, and in its slot. `caller` tells apart those of its front."""

    version: int
    slot: int
    top_k: int
    caller: int


class Answered(NamedTuple):
    """An answer is in its slot."""

    slot: int
    classes: int
    finite: bool
    queue_seconds: float


@dataclass(frozen=True, slots=True)
class Answers:
    """Those of one batch that are of one front."""

    version: int
    batch: BatchReport
    answers: Sequence[Answered]


@dataclass(frozen=True, slots=True)
class Failure:
    """An image has no answer but an error, or nobody waited for it any more: None."""

    version: int
    slot: int
    error: Exception | None


def submission(version: int, slot: int, top_k: int, caller: int) -> bytes:
    return _SUBMISSION.pack(version, slot, top_k, caller)


def submissions(records: bytes) -> Iterator[Submission]:
    """Those in whole records."""
    return map(Submission._make, _SUBMISSION.iter_unpack(records))


def answers_frame(version: int, batch: BatchReport, answers: Sequence[Answered]) -> bytes:
    head = _BATCH.pack(
        version,
        len(answers),
        batch.size,
        _TRIGGERS.index(batch.trigger),
        batch.dropped,
        batch.started_at,
        batch.forward_seconds,
        batch.busy_seconds,
    )
    return _framed(_ANSWERS, head + b"".join(_ANSWER.pack(*answer) for answer in answers))


def failure_frame(failure: Failure) -> bytes:
    return _framed(_FAILURE, pickle.dumps((failure.version, failure.slot, failure.error)))


class Frames:
    """Frames out of what comes over a socket in pieces. `name_of` gives a version's model."""

    def __init__(self, name_of: Callable[[int], str]) -> None:
        self._name_of = name_of
        self._buffer = bytearray()

    def feed(self, piece: bytes) -> Iterator[Answers | Failure]:
        """What is whole with this piece."""
        buffer = self._buffer
        buffer += piece
        at = 0
        while len(buffer) - at >= _FRAME.size:
            length, kind = _FRAME.unpack_from(buffer, at)
            end = at + _FRAME.size + length
            if end > len(buffer):
                break
            payload = bytes(buffer[at + _FRAME.size : end])
            at = end
            yield self._answers(payload) if kind == _ANSWERS else Failure(*pickle.loads(payload))  # noqa: S301 - ours
        del buffer[:at]

    def _answers(self, payload: bytes) -> Answers:
        version, _, size, trigger, dropped, started_at, forward_seconds, busy_seconds = _BATCH.unpack_from(payload)
        batch = BatchReport(
            self._name_of(version), size, _TRIGGERS[trigger], started_at, forward_seconds, busy_seconds, dropped
        )
        answers = [
            Answered(slot, classes, bool(finite), queue_seconds)
            for slot, classes, finite, queue_seconds in _ANSWER.iter_unpack(payload[_BATCH.size :])
        ]
        return Answers(version, batch, answers)


def _framed(kind: int, payload: bytes) -> bytes:
    return _FRAME.pack(len(payload), kind) + payload
