"""Compare the arms on served models, one comparison at a time, while the server continues to serve."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import torch

from gradless.arms import Arm, Inputs, Subject
from gradless.comparison import run_comparison
from gradless.errors import ComparisonCancelledError
from gradless.measuring import ComparisonProgress
from gradless.records import Comparison, ComparisonOptions, Progress
from models.hardware import cores, memory
from models.inference.engine import Engine
from models.interface.errors import ComparisonRunningError, DrainingError
from models.interface.request import CancelToken
from models.networks.network import FeaturesAndLogits

_SEED = 0
_RANDOM_PIXELS = f"random pixels, seed {_SEED}"
_UPLOADED_IMAGE = "the uploaded image"


@dataclass(eq=False, slots=True)
class _Running:
    """A running comparison. `result` is what the request waits for; `ended` is set when its thread has finished."""

    engine: Engine
    loop: asyncio.AbstractEventLoop
    result: asyncio.Future[Comparison]
    cancel_token: CancelToken = field(default_factory=CancelToken)
    ended: threading.Event = field(default_factory=threading.Event)

    def fail(self, error: Exception) -> None:
        if not self.result.done():
            self.result.set_exception(error)


class Lens:
    """Runs the comparisons of a process. For the event loop, except for methods that are thread-safe."""

    def __init__(self) -> None:
        self._thread = _new_thread()
        self._running: _Running | None = None

    async def compare(
        self,
        engine: Engine,
        options: ComparisonOptions,
        pixels: torch.Tensor | None,
        on_progress: Callable[[Progress], None],
    ) -> Comparison:
        """Compare the arms on the engine's model. Cancelling ends the comparison before its next forward.

        Raises ComparisonRunningError, ComparisonTooLargeError, DrainingError if the lens is closed meanwhile, and the
        error that `leave` is given.
        """
        if self._running is not None:
            raise ComparisonRunningError
        loop = asyncio.get_running_loop()
        this = self._running = _Running(engine, loop, loop.create_future())

        def report(progress: Progress) -> None:
            loop.call_soon_threadsafe(on_progress, progress)

        try:
            future = self._thread.submit(
                compare_served,
                engine,
                options,
                image=pixels,
                cancelled=lambda: this.cancel_token.cancelled,
                on_progress=report,
            )
        except BaseException:
            # No thread could be started. If the executor runs it later, it ends before its first forward.
            this.cancel_token.cancel()
            self._running = None
            raise
        # Called when the thread is free again, which may be after the request has ended.
        future.add_done_callback(lambda _: this.ended.set())
        future.add_done_callback(lambda done: loop.call_soon_threadsafe(self._finish, this, done))
        try:
            return await this.result
        finally:
            this.cancel_token.cancel()

    def leave(self, engine: Engine, error: Exception) -> threading.Event | None:
        """Fail the comparison of `engine`, if it is running, with `error`. Thread-safe.

        Return the event that is set when its last forward has ended, or None if no comparison of `engine` runs.
        """
        this = self._running
        if this is None or this.engine is not engine:
            return None
        this.cancel_token.cancel()
        this.loop.call_soon_threadsafe(this.fail, error)
        return this.ended

    def leave_hanging(self, engine: Engine, error: Exception) -> None:
        """Do as `leave` for an engine whose forward hangs: the next comparison gets another thread. Thread-safe."""
        if self.leave(engine, error) is None:
            return
        hanging, self._thread = self._thread, _new_thread()
        self._running = None
        hanging.shutdown(wait=False)

    def close(self) -> None:
        """End the running comparison before its next forward, without waiting for it. Thread-safe."""
        this = self._running
        if this is not None:
            this.cancel_token.cancel()
        self._thread.shutdown(wait=False, cancel_futures=True)

    def _finish(self, this: _Running, done: Future[Comparison]) -> None:
        if self._running is this:
            self._running = None
        if this.result.done():
            return
        if done.cancelled() or isinstance(done.exception(), ComparisonCancelledError):
            this.result.set_exception(DrainingError())
        elif (error := done.exception()) is not None:
            this.result.set_exception(error)
        else:
            this.result.set_result(done.result())


def _new_thread() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(1, thread_name_prefix="lens", initializer=_use_all_cores)


def _use_all_cores() -> None:
    torch.set_num_threads(cores.available_cores())


def compare_served(
    engine: Engine,
    options: ComparisonOptions,
    *,
    image: torch.Tensor | None = None,
    cancelled: Callable[[], bool] = lambda: False,
    on_progress: Callable[[Progress], object] = lambda _: None,
) -> Comparison:
    """Compare the arms on the served model with `image`, (3, side, side) uint8 of the model's input size.

    The image fills the whole batch; without one, the batch is seeded random pixels. The engine's lock is taken for one
    forward at a time, so that serving continues in between. Before each forward `cancelled` is checked and
    `on_progress` called, in this thread. Raises ComparisonCancelledError and ComparisonTooLargeError.
    """
    return run_comparison(_subject(engine, image), options, ComparisonProgress(cancelled, on_progress))


def _subject(engine: Engine, image: torch.Tensor | None) -> Subject:
    model = engine.model
    side = model.transform.crop

    def batch(size: int) -> Inputs:
        if image is None:
            generator = torch.Generator().manual_seed(_SEED)
            pixels = torch.randint(0, 256, (size, 3, side, side), dtype=torch.uint8, generator=generator)
        else:
            pixels = image.expand(size, -1, -1, -1).contiguous()
        with engine.lock, torch.no_grad():
            images: torch.Tensor = model.normalize(pixels.to(model.placement.device))
        return Inputs(size, (images,), pixels=pixels.contiguous(memory_format=torch.channels_last))

    return Subject(
        network=model.network,
        device=model.placement.device,
        batch=batch,
        input=_RANDOM_PIXELS if image is None else _UPLOADED_IMAGE,
        model=model.name,
        architecture=model.architecture,
        dtype=model.placement.dtype_name,
        fingerprint=model.fingerprint,
        backend=model.placement.backend,
        served=_served_arm(engine),
        answer=_answer,
        lock=engine.lock,
        original_name=model.network.original_name,
        classes=model.network.classes > 0,
        free_bytes=memory.free_bytes,
        reset_peak=memory.begin_peak,
        release=memory.trim,
    )


def _served_arm(engine: Engine) -> Arm:
    def forward(inputs: Inputs) -> FeaturesAndLogits:
        if inputs.pixels is None:  # pragma: no cover - batches of a served model have pixels
            raise ValueError("there are no pixels to serve")
        # Larger batches are never served.
        outputs = [engine.forward(pixels) for pixels in torch.split(inputs.pixels, engine.hints.max_batch_size)]
        if len(outputs) == 1:
            return outputs[0]
        # Inference tensors are joined into an inference tensor.
        with torch.inference_mode(outputs[0].features.is_inference()):
            return FeaturesAndLogits(*map(torch.cat, zip(*outputs, strict=True)))

    return Arm(
        name="served",
        forward=forward,
        network=engine.served_network,
        memory_note=engine.hints.memory_note,
        retained_note=engine.hints.retained_note,
    )


def _answer(output: Any) -> Any:
    """Return the logits, or the features of a network without classes; of other networks the whole output."""
    if isinstance(output, FeaturesAndLogits):
        return output.logits if output.logits.shape[1] else output.features
    return output
