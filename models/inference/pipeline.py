"""predict(): the story of one image, on one page. Admit, decode, batch, answer."""

from __future__ import annotations

import asyncio
import traceback
from collections import deque
from collections.abc import Callable, Sequence
from functools import partial
from itertools import count
from time import perf_counter
from typing import Protocol

import torch

from models.images.decode_pool import DecodePool
from models.images.transforms import Transform
from models.inference.batch_item import BatchItem, ItemOutput
from models.inference.image_job import ImageJob, Queue
from models.interface.cancellation import Wanted, always
from models.interface.errors import (
    DeadlineExceededError,
    DrainingError,
    ImageError,
    NoClassesError,
    NotFiniteError,
    OverloadedError,
    RefusedError,
)
from models.interface.results import Answer, ModelCard, Prediction, ScoredClass
from models.interface.telemetry import Outcome, StageSeconds, Task, Telemetry
from models.scheduling.admission import Admission
from models.scheduling.batcher import Completed
from models.scheduling.loop_mailbox import LoopMailbox


class ServedFacts(Protocol):
    """What is to be known of a model by those who decode for it."""

    @property
    def name(self) -> str: ...

    @property
    def transform(self) -> Transform: ...

    @property
    def labels(self) -> tuple[str, ...]: ...


class Pipeline:
    """The way of images through one model. Everything here runs on the event loop but `_queue_decoded`, which the
    decode pool calls, and what is behind the batcher. `on_decodes_ended` is called, from a thread of that pool, when no
    image is `decoding` any more."""

    def __init__(
        self,
        model: ServedFacts,
        batcher: Queue,
        decode_pool: DecodePool,
        admission: Admission,
        *,
        deadline_s: float,
        telemetry: Telemetry,
        on_decodes_ended: Callable[[], None] = lambda: None,
    ) -> None:
        self._model = model
        self._batcher = batcher
        self._decode_pool = decode_pool
        self._admission = admission
        self._deadline_s = deadline_s
        self._telemetry = telemetry
        self._on_decodes_ended = on_decodes_ended
        self._decoding: set[ImageJob] = set()
        self._inbox: LoopMailbox | None = None
        self._callers = count()

    @property
    def decoding(self) -> bool:
        """Whether an image is in the decode pool, also one whose client has disconnected: it may still be queued."""
        return bool(self._decoding)

    async def predict(
        self, images: Sequence[bytes], *, task: Task, top_k: int, wanted: Wanted = always
    ) -> list[Prediction | ImageError]:
        """Answers in the order of `images`, an image's own fault in its place.

        Raises OverloadedError, DrainingError, DeadlineExceededError, ForwardError for the request as a whole.
        Cancelling it drops what has not begun: decodes not started, items not yet in a batch. Whoever cancels may know
        later than `wanted`, which is asked before each decode and in the middle of a forward, from other threads: once
        it has said no, nothing is begun, and what comes is the cancellation.
        """
        outcome: Outcome = "failed"
        results: list[Prediction | ImageError] = []
        try:
            with self._admission.admit(len(images)):
                async with asyncio.timeout(self._deadline_s):
                    results = await self._predict_all(images, top_k, wanted)
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

    def refusal(self, task: Task) -> OverloadedError | None:
        """Why one more image would be refused now, and counted as refused; None while there is a place for it."""
        overload = self._admission.overload(1)
        if overload is not None:
            self._telemetry.images_done(self._model.name, task, "refused")
        return overload

    async def _predict_all(self, images: Sequence[bytes], top_k: int, wanted: Wanted) -> list[Prediction | ImageError]:
        inbox = self._inbox_of(asyncio.get_running_loop())
        # Images of one request have one caller, and take turns with others in the batcher's queue. A number, which is
        # never used again: the queue may be in another process, and hold images of a request that has ended.
        caller = next(self._callers)
        passages = [ImageJob(image, top_k, caller, inbox, wanted) for image in images]
        undecoded = deque(passages)
        if wanted():
            # The request's share: no more of its images at once in the decode pool than the pool has threads.
            for _ in range(min(len(images), self._decode_pool.threads)):
                self._decode_next(undecoded)
        try:
            if len(passages) == 1:
                await passages[0].settled
            else:
                await asyncio.wait([passage.settled for passage in passages])
        except asyncio.CancelledError:
            undecoded.clear()
            for passage in passages:
                if passage.outcome is None:
                    stage = passage.abandon()
                    saved_seconds = 0.0 if stage == "forward" else self._batcher.expected_seconds(1)
                    self._telemetry.image_cancelled(self._model.name, stage, saved_seconds)
            raise
        return [self._result(passage) for passage in passages]

    def _inbox_of(self, loop: asyncio.AbstractEventLoop) -> LoopMailbox:
        if self._inbox is None or self._inbox.loop is not loop:
            self._inbox = LoopMailbox(loop)
        return self._inbox

    def _decode_next(self, undecoded: deque[ImageJob]) -> None:
        while undecoded:
            try:
                passage = undecoded.popleft()
            except IndexError:
                # Another thread of the pool was faster.
                return
            self._decoding.add(passage)
            try:
                self._decode_pool.preprocess(
                    passage, self._model.transform, partial(self._queue_decoded, passage, undecoded)
                )
            except Exception as error:  # noqa: BLE001 - whatever it was: the client hears of it, the pool lives on
                # The pool is closed or has no thread: it will not decode the others either.
                passage.fail(error)
                self._decode_ended(passage)
            else:
                return

    def _queue_decoded(
        self, passage: ImageJob, undecoded: deque[ImageJob], outcome: torch.Tensor | Exception | None
    ) -> None:
        """Called by the decode pool, from one of its threads."""
        if isinstance(outcome, Exception):
            _let_go(outcome)
            passage.fail(outcome)
        # The client may have disconnected during the decode.
        elif outcome is not None and passage.wanted():
            passage.decode_seconds = perf_counter() - passage.started_at
            try:
                passage.queue(self._batcher, BatchItem(outcome, passage.top_k, passage.wanted))
            except Exception as error:  # noqa: BLE001 - as in _decode_next
                _let_go(error)
                passage.fail(error)
        # At the end of the pool's line, behind the images of others. From this thread, like the queueing: neither
        # the next batch nor the next decode must wait for a busy event loop.
        self._decode_next(undecoded)
        self._decode_ended(passage)

    def _decode_ended(self, passage: ImageJob) -> None:
        self._decoding.discard(passage)
        if not self._decoding:
            self._on_decodes_ended()

    def _result(self, passage: ImageJob) -> Prediction | ImageError:
        if isinstance(passage.outcome, Completed):
            return self._prediction(passage.outcome, passage)
        if isinstance(passage.outcome, ImageError):
            return passage.outcome
        # Whatever is not one image's fault is everybody's: the first of them answers the request.
        fault, passage.outcome = passage.outcome or DrainingError(), None
        try:
            raise fault
        finally:
            # Its traceback has this frame: a ring would keep the passage.
            del fault

    def _prediction(self, completed: Completed[ItemOutput], passage: ImageJob) -> Prediction | ImageError:
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
        seconds = StageSeconds(passage.decode_seconds, completed.queue_seconds, completed.batch.forward_seconds)
        self._telemetry.image_took(self._model.name, seconds)
        return Prediction(classes, output.features, passage.started_at, seconds, completed.batch)

    def _count(self, task: Task, images: int, results: Sequence[Prediction | ImageError], otherwise: Outcome) -> None:
        name = self._model.name
        bad = sum(isinstance(result, ImageError) for result in results)
        if bad:
            self._telemetry.images_done(name, task, "bad_image", bad)
        if len(results) > bad:
            self._telemetry.images_done(name, task, "ok", len(results) - bad)
        if images > len(results):
            self._telemetry.images_done(name, task, otherwise, images - len(results))


async def answer(
    card: ModelCard, pipeline: Pipeline, images: Sequence[bytes], *, task: Task, top_k: int, wanted: Wanted
) -> Answer:
    """Answer one request to the model of that card; `top_k` is cut to the number of its classes. Raises NoClassesError,
    and what Pipeline.predict raises."""
    if task == "classify" and not card.classes:
        raise NoClassesError(card.name)
    results = await pipeline.predict(images, task=task, top_k=min(top_k, card.classes), wanted=wanted)
    return Answer(card.name, card.fingerprint, card.feature_dimensions, card.feature_shape, results)


def _let_go(error: BaseException | None) -> None:
    """Forget, or at least empty, the frames that `error` came through: with them it would keep the file, its pixels and
    the passage, which has the error, until the garbage collector finds the ring."""
    # Of a fault in an image nobody asks where it was found. Of one in here somebody will.
    expected = isinstance(error, ImageError)
    while error is not None:
        traceback.clear_frames(error.__traceback__)
        if expected:
            error.__traceback__ = None
        error = error.__cause__ or error.__context__
