"""Inference for the routes that accept images: run the request, record it, and cancel it if the client disconnects."""

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


async def infer(upload: Upload, request: InferenceRequest) -> Answer:
    """Answer `request`, to which this adds the images and the cancel token of `upload`. Records its times.

    Raises the ImageError of an image that was sent alone, and what Runtime.predict raises.
    """
    record = record_of(upload.request.scope)
    record.start_inference(upload.model.name, request.task, len(upload.images))
    answer = await _predict(upload, request)
    record.model = answer.model
    upload.check_answer_of(answer.fingerprint)
    record.add_results([result for result in answer.results if isinstance(result, Prediction)])
    if len(answer.results) == 1 and isinstance(answer.results[0], ImageError):
        fault = answer.results[0]
        try:
            raise fault
        finally:
            # The traceback refers to this frame: a cycle would keep the request and its body.
            del answer, fault
    return answer


async def _predict(upload: Upload, request: InferenceRequest) -> Answer:
    """Return the runtime's answer, with the errors of images that are too large in their places."""
    images = [image for image in upload.images if isinstance(image, bytes)]
    too_large = len(upload.images) - len(images)
    if too_large:
        upload.metrics.images_done(upload.model.name, request.task, "bad_image", too_large)
    if images:
        request = replace(request, images=images, cancel_token=cancel_token_of(upload.request))
        # Without a `requested_model` the current default answers, which may be a new one.
        work = upload.runtime.predict(upload.requested_model, request)
        answer = await run_until_disconnect(upload.request, work)
    else:
        card = upload.model
        answer = Answer(card.name, card.fingerprint, card.feature_dimensions, card.feature_shape, [])
    if not too_large:
        return answer
    results = iter(answer.results)
    return replace(answer, results=[next(results) if isinstance(image, bytes) else image for image in upload.images])
