"""What /v1/classify and /v1/features have in common: their errors, and the way from images to an answer."""

from __future__ import annotations

from dataclasses import replace

from app.api.dependencies import Upload
from app.api.uploads import UPLOAD_ERRORS
from app.http.disconnect import cancel_token_of, run_until_disconnect
from app.http.problems import FingerprintMismatchError, ForbiddenError, UnauthorizedError
from app.observability.request_record import record_of
from models.interface import errors
from models.interface.errors import ImageError
from models.interface.request import InferenceRequest
from models.interface.results import Answer, Prediction
from models.interface.telemetry import Task

PREDICTION_ERRORS: tuple[type[Exception], ...] = (
    UnauthorizedError,
    ForbiddenError,
    FingerprintMismatchError,
    *UPLOAD_ERRORS,
    errors.UnknownModelError,
    errors.NotFiniteError,
    errors.OverloadedError,
    errors.DecodersBusyError,
    errors.DrainingError,
    errors.ModelDownError,
    errors.OutOfMemoryError,
    errors.DeadlineExceededError,
)


async def answered(upload: Upload, *, task: Task, top_k: int) -> Answer:
    """The answer to a request, its times noted for Server-Timing and the metrics; dropped if its caller leaves.

    Raises the fault of an image that was sent alone, and what Runtime.predict raises.
    """
    record = record_of(upload.request.scope)
    record.start_inference(upload.model.name, task, len(upload.images))
    answer = await _with_large_ones(upload, task, top_k)
    record.model = answer.model
    upload.check_answer_of(answer.fingerprint)
    record.add_results([result for result in answer.results if isinstance(result, Prediction)])
    if len(answer.results) == 1 and isinstance(answer.results[0], ImageError):
        fault = answer.results[0]
        try:
            raise fault
        finally:
            # Its traceback has this frame: a ring would keep the request and its body.
            del answer, fault
    return answer


async def _with_large_ones(upload: Upload, task: Task, top_k: int) -> Answer:
    """The runtime's answer for those images that have been kept, with the errors of the others in their places."""
    kept = [image for image in upload.images if isinstance(image, bytes)]
    large = len(upload.images) - len(kept)
    if large:
        upload.metrics.images_done(upload.model.name, task, "bad_image", large)
    if kept:
        # As it was asked: who names no model is answered by whichever is the default by now.
        request = InferenceRequest(task, kept, top_k, cancel_token_of(upload.request))
        work = upload.runtime.predict(upload.requested_model, request)
        answer = await run_until_disconnect(upload.request, work)
    else:
        card = upload.model
        answer = Answer(card.name, card.fingerprint, card.feature_dimensions, card.feature_shape, [])
    if not large:
        return answer
    results = iter(answer.results)
    return replace(answer, results=[next(results) if isinstance(image, bytes) else image for image in upload.images])
