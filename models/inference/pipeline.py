"""The path of a request through one model: admission, decode, batch, answer."""

from __future__ import annotations

import asyncio
import traceback
from collections import deque
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from time import perf_counter
from typing import Protocol

import torch

from models.images.decode_pool import DecodePool
from models.images.preprocessing import Transform
from models.inference.image_job import BatchItem, ImageJob, ItemOutput, Queue
from models.interface.admission import Admission
from models.interface.errors import (
    AtCapacityError,
    DeadlineExceededError,
    DrainingError,
    ImageError,
    NoClassesError,
    NotFiniteError,
    RefusedError,
)
from models.interface.request import CancelToken, InferenceRequest
from models.interface.results import Answer, ModelCard, Prediction, ScoredClass
from models.interface.telemetry import Outcome, StageSeconds, Task, Telemetry
from models.interface.turns import in_turns
from models.scheduling.batcher import Completed


class ModelFacts(Protocol):
    """What the pipeline needs to know of a model."""

    @property
    def name(self) -> str: ...

    @property
    def transform(self) -> Transform: ...

    @property
    def labels(self) -> tuple[str, ...]: ...


class Pipeline:
    """Answers requests to one model. Event loop only, except `_decode_ended` and what it calls, in the
    decode pool."""

    def __init__(
        self,
        model: ModelFacts,
        batcher: Queue,
        decode_pool: DecodePool,
        admission: Admission,
        *,
        deadline_s: float,
        telemetry: Telemetry,
    ) -> None:
        self._model = model
        self._batcher = batcher
        self._decode_pool = decode_pool
        self._admission = admission
        self._deadline_s = deadline_s
        self._telemetry = telemetry
        self._decoding: set[ImageJob] = set()

    @property
    def decoding(self) -> bool:
        """Whether the decode pool has an image of this model. A cancelled one counts, since it may still be queued."""
        return bool(self._decoding)

    async def predict(self, request: InferenceRequest) -> list[Prediction | ImageError]:
        """Return one result per image, in order; an ImageError for an image that is at fault itself.

        Raises AtCapacityError, DrainingError, ModelDownError, ModelGoneError, OutOfMemoryError, DeadlineExceededError
        and ForwardError for the request as a whole.
        Cancelling the task drops images that are not decoded or not in a batch yet. Cancelling the request's token
        does the same but raises nothing, so the task must be cancelled as well.
        """
        outcome: Outcome = "failed"
        results: list[Prediction | ImageError] = []
        try:
            with self._admission.admit(len(request.images)):
                async with asyncio.timeout(self._deadline_s):
                    results = await self._predict_all(request)
        except TimeoutError:
            outcome = "late"
            raise DeadlineExceededError(self._deadline_s) from None
        except RefusedError:
            outcome = "refused"
            raise
        except asyncio.CancelledError:
            outcome = "cancelled"
            raise
        finally:
            self._count(request, results, outcome)
        return results

    def refusal(self, task: Task) -> AtCapacityError | None:
        """Return why one more image would be refused, and count it as refused; None, and announce it, while there is
        capacity."""
        overload = self._admission.announce()
        if overload is not None:
            self._telemetry.images_done(self._model.name, task, "refused")
        return overload

    async def _predict_all(self, request: InferenceRequest) -> list[Prediction | ImageError]:
        loop = asyncio.get_running_loop()
        # Also cancelled when the deadline passes.
        token = CancelToken(request.cancel_token)
        for_jobs = replace(request, images=(), cancel_token=token)
        jobs = [ImageJob(image, for_jobs, loop) for image in request.images]
        undecoded = deque(jobs)
        if not token.cancelled:
            # One request has at most as many images in the decode pool as the pool has threads.
            for _ in range(min(len(jobs), self._decode_pool.threads)):
                self._decode_next(undecoded)
        try:
            if len(jobs) == 1:
                await jobs[0].done
            else:
                await asyncio.wait([job.done for job in jobs])
        except asyncio.CancelledError:
            token.cancel()
            undecoded.clear()
            for job in jobs:
                if job.outcome is None:
                    self._cancel(job)
            raise
        return await in_turns(self._result, jobs)

    def _cancel(self, job: ImageJob) -> None:
        stage = job.cancel()
        saved_seconds = 0.0 if stage == "forward" else self._batcher.expected_seconds(1)
        self._telemetry.image_cancelled(self._model.name, stage, saved_seconds)

    def _decode_next(self, undecoded: deque[ImageJob]) -> None:
        while undecoded:
            try:
                job = undecoded.popleft()
            except IndexError:
                # Another thread of the pool took it.
                return
            self._decoding.add(job)
            try:
                self._decode_pool.decode(job, self._model.transform, partial(self._decode_ended, job, undecoded))
            except Exception as error:  # noqa: BLE001 - every error is an answer to the client; the pool goes on
                # The pool is closed or has no thread, so it will not decode the other images either.
                job.fail(error)
                self._decoding.discard(job)
            else:
                return

    def _decode_ended(
        self, job: ImageJob, undecoded: deque[ImageJob], outcome: torch.Tensor | Exception | None
    ) -> None:
        """Called by the decode pool, from one of its threads."""
        if isinstance(outcome, Exception):
            _clear_frames(outcome)
            job.fail(outcome)
        # The client may have disconnected during the decode.
        elif outcome is not None and not job.cancel_token.cancelled:
            job.decode_seconds = perf_counter() - job.started_at
            try:
                job.queue(self._batcher, BatchItem(outcome, job.request))
            except Exception as error:  # noqa: BLE001 - as in _decode_next
                _clear_frames(error)
                job.fail(error)
        # The next image goes to the end of the pool's queue, behind other requests. It is submitted from this thread
        # so that a busy event loop delays neither the next batch nor the next decode.
        self._decode_next(undecoded)
        self._decoding.discard(job)

    def _result(self, job: ImageJob) -> Prediction | ImageError:
        if isinstance(job.outcome, Completed):
            return self._prediction(job.outcome, job)
        if isinstance(job.outcome, ImageError):
            return job.outcome
        # Any other error is not the image's own: the first one answers the whole request.
        error, job.outcome = job.outcome or DrainingError(), None
        try:
            raise error
        finally:
            # The traceback refers to this frame: a cycle would keep the job.
            del error

    def _prediction(self, completed: Completed[ItemOutput], job: ImageJob) -> Prediction | ImageError:
        output = completed.result
        if not output.finite:
            return NotFiniteError(self._model.name)
        labels = self._model.labels
        classes = tuple(
            ScoredClass(index, labels[index], probability)
            for index, probability in zip(output.indices.tolist(), output.probabilities.tolist(), strict=True)
        )
        seconds = StageSeconds(job.decode_seconds, completed.queue_seconds, completed.batch.forward_seconds)
        self._telemetry.image_took(completed.batch.instance, seconds)
        return Prediction(classes, output.features, job.started_at, seconds, completed.batch, output.all_probabilities)

    def _count(
        self, request: InferenceRequest, results: Sequence[Prediction | ImageError], outcome_of_others: Outcome
    ) -> None:
        bad = sum(isinstance(result, ImageError) for result in results)
        counts: dict[Outcome, int] = {"bad_image": bad, "ok": len(results) - bad}
        counts[outcome_of_others] = len(request.images) - len(results)
        for outcome, images in counts.items():
            if images:
                self._telemetry.images_done(self._model.name, request.task, outcome, images)


async def answer(card: ModelCard, pipeline: Pipeline, request: InferenceRequest) -> Answer:
    """Answer one request to the model of `card`; `top_k` is limited to its number of classes. Raises NoClassesError,
    and what Pipeline.predict raises."""
    if request.task == "classify" and not card.classes:
        raise NoClassesError(card.name)
    if request.top_k > card.classes:
        request = replace(request, top_k=card.classes)
    results = await pipeline.predict(request)
    return Answer(card.name, card.fingerprint, card.feature_dimensions, card.feature_shape, results, card.version)


def _clear_frames(error: BaseException | None) -> None:
    """Clear the frames of the error's traceback. They hold the file, its pixels and the job, and the job holds the
    error: that cycle would keep all of them until a garbage collection."""
    # The traceback of an image's own error is of no use. That of any other error is logged.
    expected = isinstance(error, ImageError)
    while error is not None:
        traceback.clear_frames(error.__traceback__)
        if expected:
            error.__traceback__ = None
        error = error.__cause__ or error.__context__
