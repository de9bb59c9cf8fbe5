"""What /v1/classify and /v1/features have in common: their errors, and what becomes of an answer before its body."""

from __future__ import annotations

from fastapi import Request

from app import problems
from app.observation import observed
from models import errors
from models.errors import ImageError
from models.predictions import Answer, Prediction

PREDICTION_ERRORS: tuple[type[Exception], ...] = (
    problems.MalformedMultipartError,
    errors.UnknownModelError,
    problems.SlowBodyError,
    problems.BodyTooLargeError,
    problems.TooManyImagesError,
    errors.ImageTooLargeError,
    errors.UnsupportedFormatError,
    problems.NoImagesError,
    errors.EmptyImageError,
    errors.UndecodableImageError,
    errors.TooManyPixelsError,
    errors.TooElongatedError,
    errors.OverloadedError,
    errors.DrainingError,
    errors.DeadlineExceededError,
)


def timed(request: Request, answer: Answer) -> Answer:
    """Note the answer's times for Server-Timing and the metrics. Raises the fault of an image sent alone."""
    predicted = [result.seconds for result in answer.results if isinstance(result, Prediction)]
    observed(request.scope).answered(answer.model, predicted)
    if len(answer.results) == 1 and isinstance(answer.results[0], ImageError):
        raise answer.results[0]
    return answer
