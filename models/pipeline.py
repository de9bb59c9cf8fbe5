"""predict(): the story of one image, on one page. Admit, decode, batch, answer."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from concurrent.futures import Executor
from time import perf_counter

import torch

from models.admission import Admission
from models.batching import Batcher, Completed
from models.engine import Item, Output
from models.errors import DeadlineExceededError, ImageError, RefusedError
from models.images import decode_image
from models.limits import ImageLimits
from models.loading import LoadedModel
from models.predictions import Prediction, ScoredClass
from models.telemetry import Outcome, StageSeconds, Task, Telemetry


class Pipeline:
    """The way of images through one model. Everything here runs on the event loop but `_decode`, which the pool
    runs, and what is behind the batcher."""

    def __init__(
        self,
        model: LoadedModel,
        batcher: Batcher[Item, Output],
        decode_pool: Executor,
        admission: Admission,
        *,
        limits: ImageLimits,
        deadline_s: float,
        telemetry: Telemetry,
    ) -> None:
        self._model = model
        self._batcher = batcher
        self._decode_pool = decode_pool
        self._admission = admission
        self._limits = limits
        self._deadline_s = deadline_s
        self._telemetry = telemetry

    async def predict(self, images: Sequence[bytes], *, task: Task, top_k: int) -> list[Prediction | ImageError]:
        """Answers in the order of `images`, an image's own fault in its place.

        Raises OverloadedError, DrainingError, DeadlineExceededError, ForwardError for the request as a whole.
        Cancelling it drops what has not begun: decodes not started, items not yet in a batch.
        """
        outcome: Outcome = "failed"
        results: list[Prediction | ImageError] = []
        try:
            with self._admission.admit(len(images)):
                async with asyncio.timeout(self._deadline_s):
                    results = await self._predict_all(images, top_k)
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
            self._count(task, len(images), results, outcome)
        return results

    async def _predict_all(self, images: Sequence[bytes], top_k: int) -> list[Prediction | ImageError]:
        if len(images) == 1:
            return [await self._predict_one(images[0], top_k)]
        settled = await asyncio.gather(*(self._predict_one(image, top_k) for image in images), return_exceptions=True)
        # Whatever is not one image's fault is everybody's: the first of them answers the request.
        for result in settled:
            if isinstance(result, BaseException) and not isinstance(result, ImageError):
                raise result
        return [result for result in settled if isinstance(result, Prediction | ImageError)]

    async def _predict_one(self, encoded: bytes, top_k: int) -> Prediction | ImageError:
        submitted_at = perf_counter()
        try:
            image = await asyncio.get_running_loop().run_in_executor(self._decode_pool, self._decode, encoded)
        except ImageError as error:
            return error
        except asyncio.CancelledError:
            self._telemetry.image_cancelled(self._model.name, "decode")
            raise
        decode_seconds = perf_counter() - submitted_at
        future = self._batcher.submit(Item(image, top_k))
        try:
            completed = await asyncio.wrap_future(future)
        except asyncio.CancelledError:
            # Where the cancellation came too late to stop it, the forward ran in vain.
            self._telemetry.image_cancelled(self._model.name, "queue" if future.cancelled() else "forward")
            raise
        return self._prediction(completed, decode_seconds)

    def _decode(self, encoded: bytes) -> torch.Tensor:
        return self._model.transform.shape(decode_image(encoded, self._limits))

    def _prediction(self, completed: Completed[Output], decode_seconds: float) -> Prediction:
        output = completed.result
        labels = self._model.labels
        classes = (
            ()
            if output.indices is None or output.probabilities is None
            else tuple(
                ScoredClass(index, labels[index], probability)
                for index, probability in zip(output.indices.tolist(), output.probabilities.tolist(), strict=True)
            )
        )
        seconds = StageSeconds(decode_seconds, completed.queue_seconds, completed.forward_seconds)
        self._telemetry.image_took(self._model.name, seconds)
        return Prediction(classes, output.features, seconds, completed.batch_size)

    def _count(self, task: Task, images: int, results: Sequence[Prediction | ImageError], otherwise: Outcome) -> None:
        name = self._model.name
        bad = sum(isinstance(result, ImageError) for result in results)
        if bad:
            self._telemetry.images_done(name, task, "bad_image", bad)
        if len(results) > bad:
            self._telemetry.images_done(name, task, "ok", len(results) - bad)
        if images > len(results):
            self._telemetry.images_done(name, task, otherwise, images - len(results))
