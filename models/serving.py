"""Every model this process serves, from start to stop: what app/main.py holds, and a notebook can."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from types import MappingProxyType

from models import catalog, devices, memory
from models.calibration import Calibration
from models.comparison import Comparison, ComparisonOptions, Progress
from models.errors import ModelDownError, UnknownModelError
from models.gradmodes import prepare_profiler
from models.lens import Lens
from models.predictions import Answer, ModelCard
from models.served import ServedModel, ServingOptions, Surroundings, serve_model
from models.supervision import Supervisor
from models.telemetry import BatcherState, MemoryKind, QueueState, Task, Telemetry

__all__ = ["Serving", "ServingOptions"]


class Serving:
    """Loads and warms up on construction, which blocks; after that its coroutines belong to one event loop.

    A model that stops working is started anew; `give_up` is called, from another thread, with the reason why that
    will not be tried any more, which is in the log as well. Raises StartError when a model cannot be served as asked.
    """

    def __init__(
        self, options: ServingOptions, telemetry: Telemetry, give_up: Callable[[str], None] = lambda _reason: None
    ) -> None:
        if options.cores is not None:
            devices.use_no_more_cores_than(options.cores)
        placement = devices.place(options.device, options.precision, options.backend)
        calibration = Calibration.wanted(options.precision, options.calibration_folder)
        memory.keep_freed()
        prepare_profiler()
        decode_threads = options.decode_threads or devices.available_cores()
        self._decode_pool = ThreadPoolExecutor(
            decode_threads,
            thread_name_prefix="decode",
            initializer=devices.use_one_core_in_this_thread,
        )
        self._around = Surroundings(
            options=options,
            placement=placement,
            calibration=calibration,
            decode_pool=self._decode_pool,
            decode_threads=decode_threads,
            telemetry=telemetry,
        )
        self._lens = Lens()
        self._supervisor: Supervisor | None = None
        self._draining = False
        self._served: dict[str, ServedModel] = {}
        self._down: set[str] = set()
        try:
            for wanted in options.models:
                spec = catalog.find(wanted) if isinstance(wanted, str) else wanted
                self._served[spec.name] = serve_model(spec, self._around)
        except BaseException:
            self.close(timeout_s=0)
            raise
        self._give_up = give_up
        self._supervisor = Supervisor(self._ailments, self._start_anew, self._give_up_on_the_ill)

    @property
    def cards(self) -> Mapping[str, ModelCard]:
        """The served models by name, the default first."""
        return MappingProxyType({name: served.card for name, served in self._served.items()})

    @property
    def ready(self) -> bool:
        """Every model is warmed up and works, and nobody drains."""
        return not self._draining and not self._down and not self._ailments()

    @property
    def draining(self) -> bool:
        """Whether nothing new is taken any more."""
        return self._draining

    async def predict(self, model: str | None, images: Sequence[bytes], *, task: Task, top_k: int) -> Answer:
        """Answer one request. `model` None is the default; `top_k` 0 asks for features alone and is cut to the
        number of classes. Raises UnknownModelError, ModelDownError, and what Pipeline.predict raises."""
        served = self._find(model)
        card = served.card
        results = await served.pipeline.predict(images, task=task, top_k=min(top_k, card.classes))
        return Answer(card.name, card.fingerprint, card.feature_dimensions, results)

    async def compare(
        self,
        model: str | None,
        options: ComparisonOptions,
        image: bytes | None = None,
        on_progress: Callable[[Progress], None] = lambda _: None,
    ) -> Comparison:
        """Run the lens on a served model, on the encoded `image` or on random pixels. `on_progress` hears of each
        forward on the event loop. Cancelling it ends the comparison before its next forward.

        Raises UnknownModelError, ModelDownError, ComparisonRunningError, ComparisonTooLargeError, the fault of an
        image, and DrainingError when serving is closed meanwhile.
        """
        served = self._find(model)
        loop = asyncio.get_running_loop()
        pixels = None if image is None else await loop.run_in_executor(self._decode_pool, served.pixels_of, image)
        comparison = await self._lens.compare(served.engine, options, pixels, on_progress)
        self._around.telemetry.compared(comparison)
        return comparison

    def queues(self) -> dict[str, QueueState]:
        """What each model has before it, by name."""
        return {name: served.queue_state() for name, served in self._served.items()}

    def batchers(self) -> dict[str, BatcherState]:
        """How the thread of each model does, by name."""
        return {name: served.batcher_state() for name, served in self._served.items()}

    def memory_bytes(self) -> dict[MemoryKind, int]:
        """Memory figures of the device, without synchronising it."""
        return memory.figures(self._around.placement.device)

    def utilization(self) -> float | None:
        """Share of the last second or less in which the device computed, 0..1; None where nothing tells."""
        return devices.utilization(self._around.placement.device)

    def drain(self) -> None:
        """Take nothing new from now on; what was accepted is answered. Safe to call from a signal handler."""
        self._draining = True
        for served in self._served.values():
            served.admission.close()

    def close(self, timeout_s: float) -> bool:
        """Drain, and end every thread. False if a forward was still running after `timeout_s`."""
        self.drain()
        if self._supervisor is not None:
            self._supervisor.stop()
        self._lens.close()
        # What was accepted is decoded and queued before the batchers close; a caller who gave up has cancelled his.
        self._decode_pool.shutdown(wait=True)
        closed = [served for served in self._served.values() if served.batcher.close(timeout_s)]
        for served in closed:
            served.engine.close()
        return len(closed) == len(self._served)

    def _find(self, model: str | None) -> ServedModel:
        name = next(iter(self._served)) if model is None else model
        if name not in self._served:
            raise UnknownModelError(name, list(self._served))
        if name in self._down:
            raise ModelDownError(name)
        return self._served[name]

    def _ailments(self) -> dict[str, str]:
        found = ((name, served.ailment()) for name, served in self._served.items())
        ailments = {name: ailment for name, ailment in found if ailment is not None}
        # Asked last: batchers that end because everything does are not ill, and nobody new comes to those that are.
        return {} if self._draining else ailments

    def _start_anew(self, name: str) -> None:
        """Give those who wait their errors and put a new model in the old one's place. In the supervisor's thread."""
        old = self._served[name]
        self._take_down(name)
        # A lens that waits for the turn on a device that hangs would wait for ever.
        self._lens.close()
        self._lens = Lens()
        new = serve_model(old.spec, self._around)
        # In one step: others look through it meanwhile.
        self._served = {**self._served, name: new}
        # Drained while it was loading.
        if self._draining:
            new.admission.close()
        self._down.discard(name)
        self._around.telemetry.model_replaced(name)

    def _take_down(self, name: str) -> None:
        self._down.add(name)
        self._served[name].batcher.abandon(lambda: ModelDownError(name))

    def _give_up_on_the_ill(self, reason: str) -> None:
        """Nobody will be answered by them any more, and nobody needs to wait for that."""
        for name in self._ailments():
            self._take_down(name)
        self._give_up(reason)
