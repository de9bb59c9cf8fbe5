"""What a worker and the engine process tell each other of images arrives as it was, however it is cut."""

from __future__ import annotations

import pickle

import pytest

from models.interface.errors import OutOfMemoryError
from models.interface.request import InferenceRequest
from models.interface.telemetry import BatchReport
from models.workers.wire_format import (
    SUBMISSION_BYTES,
    Answered,
    Answers,
    Failure,
    Frames,
    Submission,
    answers_frame,
    failure_frame,
    submission,
    submissions,
)

_BATCH = BatchReport("tiny", 5, "full", 12.25, 0.5, 0.25, 2)
_ANSWERS = [Answered(7, 5, 2**40, 0.125, finite=True), Answered(0, 0, 1, 0.0, finite=False)]
_BROKEN = b"\x03\0\0\0\x01abc"


def test_submissions_are_records_of_one_size() -> None:
    sent = [
        Submission(1, 300, 2**40, InferenceRequest("classify", top_k=5, fairness_key=2**63 + 7)),
        Submission(2, 0, 1, InferenceRequest("search", fairness_key=1)),
    ]
    records = b"".join(map(submission, sent))

    assert len(records) == 2 * SUBMISSION_BYTES
    assert list(submissions(records)) == sent


@pytest.mark.parametrize("step", [1, 7, 1000])
def test_frames_are_read_out_of_pieces_of_any_size(step: int) -> None:
    sent = answers_frame(3, _BATCH, _ANSWERS) + failure_frame(Failure(3, 9, 2**40, OutOfMemoryError("tiny")))
    sent += failure_frame(Failure(4, 1, 5, None)) + answers_frame(3, _BATCH, [])
    frames = Frames()

    found = [frame for at in range(0, len(sent), step) for frame in frames.feed(sent[at : at + step])]

    answers, failure, abandoned, none = found
    assert answers == Answers(3, _BATCH, _ANSWERS)
    assert isinstance(failure, Failure)
    assert isinstance(failure.error, OutOfMemoryError)
    assert (failure.version, failure.slot, failure.generation, failure.error.model) == (3, 9, 2**40, "tiny")
    assert abandoned == Failure(4, 1, 5, None)
    assert none == Answers(3, _BATCH, [])


def test_a_frame_is_given_once_also_when_its_reader_fails() -> None:
    frames = Frames()

    def read(piece: bytes) -> list[int]:
        read_slots: list[int] = []
        for frame in frames.feed(piece):
            assert isinstance(frame, Failure)
            if frame.slot == 1:
                raise KeyError(frame.slot)
            read_slots.append(frame.slot)
        return read_slots

    first, second, third = (failure_frame(Failure(0, slot, 1, None)) for slot in range(3))
    with pytest.raises(KeyError):
        read(first + second)

    assert read(third) == [2]
    assert read(b"") == []


def test_a_frame_that_cannot_be_read_is_not_read_again() -> None:
    frames = Frames()
    with pytest.raises(pickle.UnpicklingError):
        list(frames.feed(_BROKEN + failure_frame(Failure(0, 4, 1, None))))

    assert list(frames.feed(b"")) == [Failure(0, 4, 1, None)]
