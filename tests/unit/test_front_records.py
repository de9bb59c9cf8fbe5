"""What a front and the engine process tell each other of images arrives as it was, however it is cut."""

from __future__ import annotations

import pytest

from models.errors import OutOfMemoryError
from models.fronts.records import (
    SUBMISSION_BYTES,
    Answered,
    Answers,
    Failure,
    Frames,
    answers_frame,
    failure_frame,
    submission,
    submissions,
)
from models.telemetry import BatchReport

_BATCH = BatchReport("tiny", 5, "full", 12.25, 0.5, 0.25, 2)
_ANSWERS = [Answered(7, 5, finite=True, queue_seconds=0.125), Answered(0, 0, finite=False, queue_seconds=0.0)]


def test_submissions_are_records_of_one_size() -> None:
    records = submission(1, 300, 5, 2**63 + 7) + submission(2, 0, 0, 1)

    assert len(records) == 2 * SUBMISSION_BYTES
    assert [tuple(each) for each in submissions(records)] == [(1, 300, 5, 2**63 + 7), (2, 0, 0, 1)]


@pytest.mark.parametrize("step", [1, 7, 1000])
def test_frames_are_read_out_of_pieces_of_any_size(step: int) -> None:
    sent = answers_frame(3, _BATCH, _ANSWERS) + failure_frame(Failure(3, 9, OutOfMemoryError("tiny")))
    sent += failure_frame(Failure(4, 1, None)) + answers_frame(3, _BATCH, [])
    frames = Frames({3: "tiny"}.__getitem__)

    found = [frame for at in range(0, len(sent), step) for frame in frames.feed(sent[at : at + step])]

    answers, failure, abandoned, none = found
    assert answers == Answers(3, _BATCH, _ANSWERS)
    assert isinstance(failure, Failure)
    assert isinstance(failure.error, OutOfMemoryError)
    assert (failure.version, failure.slot, failure.error.model) == (3, 9, "tiny")
    assert abandoned == Failure(4, 1, None)
    assert none == Answers(3, _BATCH, [])
