"""predict(): the story of one image, on one page. Admit, decode, batch, answer."""

from __future__ import annotations

import asyncio
from collections.abc import Hashable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from time import perf_counter

from models.admission import Admission
from models.batching import Batcher, Completed
from models.engine import Item, Output
from models.errors import DeadlineExceededError, ImageError, NotFiniteError, RefusedError
from models.images import decode_image
from models.limits import ImageLimits
from models.loading import LoadedModel
from models.predictions import Prediction, ScoredClass
from models.telemetry import Outcome, Stage, StageSeconds, Task, Telemetry


class Pipeline:
    """The way of images through one model. Everything here runs on the event loop but `_decode_and_queue`, which the
    decode pool of `decode_threads` runs, and what is behind the batcher."""

    def __init__(
        self,
        model: LoadedModel,
        batcher: Batcher[Item, Output],
        decode_pool: ThreadPoolExecutor,
        admission: Admission,
        *,
        decode_threads: int,
        limits: ImageLimits,
        deadline_s: float,
        telemetry: Telemetry,
    ) -> None:
        self._model = model
        self._batcher = batcher
        self._decode_pool = decode_pool
        self._admission = admission
        self._decode_threads = decode_threads
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
        # The request's share: no more of its images at once in the decode pool than the pool has threads.
        share = asyncio.Semaphore(self._decode_threads)
        if len(images) == 1:
            return [await self._predict_one(images[0], top_k, share)]
        settled = await asyncio.gather(
            *(self._predict_one(image, top_k, share) for image in images), return_exceptions=True
        )
        # Whatever is not one image's fault is everybody's: the first of them answers the request.
        for result in settled:
            if isinstance(result, BaseException) and not isinstance(result, ImageError):
                raise result
        return [result for result in settled if isinstance(result, Prediction | ImageError)]

    async def _predict_one(self, encoded: bytes, top_k: int, share: asyncio.Semaphore) -> Prediction | ImageError:
        passage = _Passage(encoded, top_k, share)
        loop = asyncio.get_running_loop()
        try:
            async with share:
                queued = await loop.run_in_executor(self._decode_pool, self._decode_and_queue, passage)
            completed = await asyncio.wrap_future(queued)
        except ImageError as error:
            return error
        except asyncio.CancelledError:
            self._telemetry.image_cancelled(self._model.name, passage.abandon())
            raise
        return self._prediction(completed, passage.decode_seconds)

    def _decode_and_queue(self, passage: _Passage) -> Future[Completed[Output]]:
        transform = self._model.transform
        # Twice the size is resized with antialiasing to the same picture, whatever was left out above it.
        decoded = decode_image(passage.encoded, self._limits, enough=2 * transform.resize)
        item = Item(transform.shape(decoded), passage.top_k)
        passage.decode_seconds = perf_counter() - passage.started_at
        # From this thread: the next batch must not wait for a busy event loop.
        queued = passage.queued = self._batcher.submit(item, caller=passage.caller)
        if passage.abandoned:
            queued.cancel()
        return queued

    def _prediction(self, completed: Completed[Output], decode_seconds: float) -> Prediction | ImageError:
        output = completed.result
        if not output.finite:
            return NotFiniteError(self._model.name)
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


class _Passage:
    """One image on its way, between the event loop, which may abandon it, and the decode pool, which queues it."""

    def __init__(self, encoded: bytes, top_k: int, caller: Hashable) -> None:
        self.encoded = encoded
        self.top_k = top_k
        # Images of one request have one caller, and take turns with others in the batcher's queue.
        self.caller = caller
        self.started_at = perf_counter()
        self.decode_seconds = 0.0
        self.queued: Future[Completed[Output]] | None = None
        self.abandoned = False

    def abandon(self) -> Stage:
        """Nobody waits any more: give the item up unless its forward has begun. Returns the stage it was in.

        The flag is raised before the future is looked for, and the pool looks for the flag after it has made the
        future: one of them finds the other.
        """
        self.abandoned = True
        if self.queued is None:
            return "decode"
        self.queued.cancel()
        return "queue" if self.queued.cancelled() else "forward"
