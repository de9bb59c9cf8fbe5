"""What goes over the sockets of images between a worker and the engine process: who waits in which slot, and who has
been answered. The bytes of images and answers are in the slots. Each message names the image by its slot and the
slot's generation (models/workers/shared_slots.py)."""

from __future__ import annotations

import pickle
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple, get_args

from models.interface.request import InferenceRequest
from models.interface.telemetry import BatchReport, Task, Trigger

_TRIGGERS: tuple[Trigger, ...] = get_args(Trigger)
_TASKS: tuple[Task, ...] = get_args(Task)

# The number of the model's version, the slot, the slot's generation; of the request: fairness key, top_k, task.
_SUBMISSION = struct.Struct("<IIQQIBxxx")
SUBMISSION_BYTES = _SUBMISSION.size

_FRAME = struct.Struct("<IB")
_ANSWERS, _FAILURE = 0, 1

# The version, then what BatchReport has: the bytes of the model's name, which follow, and numbers.
_BATCH = struct.Struct("<IHBxIIddd")
# The slot, how many classes, its generation, the seconds it waited, and whether its numbers are finite.
_ANSWER = struct.Struct("<IIQdB")


class Submission(NamedTuple):
    """An image is decoded, and in its slot. Of the request, the cancel token stays behind: the slot has its remote
    form."""

    version: int
    slot: int
    generation: int
    request: InferenceRequest


class Answered(NamedTuple):
    """An answer is in its slot."""

    slot: int
    classes: int
    generation: int
    queue_seconds: float
    finite: bool


@dataclass(frozen=True, slots=True)
class Answers:
    """Those of one batch that are of one worker."""

    version: int
    batch: BatchReport
    answers: Sequence[Answered]


@dataclass(frozen=True, slots=True)
class Failure:
    """An image has no answer but an error, or nobody waited for it any more: None."""

    version: int
    slot: int
    generation: int
    error: Exception | None


def submission(submitted: Submission) -> bytes:
    version, slot, generation, request = submitted
    return _SUBMISSION.pack(version, slot, generation, request.fairness_key, request.top_k, _TASKS.index(request.task))


def submissions(records: bytes) -> Iterator[Submission]:
    """Those in whole records."""
    for version, slot, generation, fairness_key, top_k, task in _SUBMISSION.iter_unpack(records):
        request = InferenceRequest(_TASKS[task], top_k=top_k, fairness_key=fairness_key)
        yield Submission(version, slot, generation, request)


def answers_frame(version: int, batch: BatchReport, answers: Sequence[Answered]) -> bytes:
    name = batch.model.encode()
    head = _BATCH.pack(
        version,
        len(name),
        _TRIGGERS.index(batch.trigger),
        batch.size,
        batch.dropped,
        batch.started_at,
        batch.forward_seconds,
        batch.busy_seconds,
    )
    return _framed(_ANSWERS, head + name + b"".join(_ANSWER.pack(*answer) for answer in answers))


def failure_frame(failure: Failure) -> bytes:
    return _framed(_FAILURE, pickle.dumps((failure.version, failure.slot, failure.generation, failure.error)))


class Frames:
    """Frames out of what comes over a socket in pieces."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    def feed(self, piece: bytes) -> Iterator[Answers | Failure]:
        """What is whole with this piece. Each frame is given once, also when what is made of it raises."""
        buffer = self._buffer
        buffer += piece
        while len(buffer) >= _FRAME.size:
            length, kind = _FRAME.unpack_from(buffer)
            end = _FRAME.size + length
            if end > len(buffer):
                return
            payload = bytes(buffer[_FRAME.size : end])
            del buffer[:end]
            yield _answers(payload) if kind == _ANSWERS else Failure(*pickle.loads(payload))  # noqa: S301 - ours


def _answers(payload: bytes) -> Answers:
    version, name_bytes, trigger, size, dropped, started_at, forward_s, busy_s = _BATCH.unpack_from(payload)
    answers_at = _BATCH.size + name_bytes
    name = payload[_BATCH.size : answers_at].decode()
    answers = [
        Answered(slot, classes, generation, queue_seconds, bool(finite))
        for slot, classes, generation, queue_seconds, finite in _ANSWER.iter_unpack(payload[answers_at:])
    ]
    batch = BatchReport(name, size, _TRIGGERS[trigger], started_at, forward_s, busy_s, dropped)
    return Answers(version, batch, answers)


def _framed(kind: int, payload: bytes) -> bytes:
    return _FRAME.pack(len(payload), kind) + payload
