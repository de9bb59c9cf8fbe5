"""Every model this process serves, from start to stop: what app/main.py holds, and a notebook can."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from time import perf_counter
from types import MappingProxyType

from gradless import prepare_profiler
from gradless.records import Comparison, ComparisonOptions, Progress
from models.backends import place
from models.hardware import cores, cuda, memory
from models.images.decode_pool import DecodePool
from models.inference.pipeline import answer
from models.interface.cancellation import Wanted, always
from models.interface.errors import ModelGoneError, OverloadedError
from models.interface.results import Answer, Loaded, ModelCard
from models.interface.telemetry import BatcherState, MemoryKind, QueueState, Task, Telemetry
from models.lens.runner import Lens
from models.loading import catalog, sources
from models.loading.calibration import Calibration
from models.serving.model_changes import ModelChanges
from models.serving.model_instance import ModelInstance, RemoteAdmission, ServingContext, ServingOptions
from models.serving.registry import ModelRegistry
from models.serving.supervisor import Supervisor

__all__ = ["LocalRuntime", "ServingOptions"]


class LocalRuntime:
    """Loads and warms up on construction, which blocks; after that its coroutines belong to one event loop.

    A model that stops working is started anew; `give_up` is called, from another thread, with the reason why that
    will not be tried any more, which is in the log as well. Raises StartError when a model cannot be served as asked.
    """

    def __init__(
        self,
        options: ServingOptions,
        telemetry: Telemetry,
        give_up: Callable[[str], None] = lambda _reason: None,
        reception: RemoteAdmission | None = None,
    ) -> None:
        if options.cores is not None:
            cores.limit_cores(options.cores)
        placement = place(options.device, options.precision, options.backend)
        specs = catalog.find_all(options.models)
        calibration = Calibration.for_precision(options.precision, options.calibration_folder)
        memory.retain_freed_pages()
        prepare_profiler()
        self._decode_pool = DecodePool(
            options.decode_threads or cores.decode_threads(), options.limits, longest_wait_s=options.deadline_s / 2
        )
        self._around = ServingContext(
            options=options,
            placement=placement,
            calibration=calibration,
            decode_pool=self._decode_pool,
            telemetry=telemetry,
            reception=reception,
        )
        self._draining = False
        self._give_up = give_up
        self._roster = ModelRegistry()
        self._lens = Lens()
        self._changes = ModelChanges(self._roster, self._around, self._lens, lambda: self._draining)
        self._supervisor: Supervisor | None = None
        try:
            for spec, wanted in zip(specs, options.models, strict=True):
                self._changes.start(spec, sources.from_operator(wanted))
            self._supervisor = Supervisor(
                self._ailments, self._changes.start_anew, self._give_up_on_the_ill, beyond_cure=self._stuck_decode
            )
        except BaseException:
            self.close(timeout_s=0)
            raise

    @property
    def cards(self) -> Mapping[str, ModelCard]:
        """The served models by name, the default first."""
        return MappingProxyType({name: served.card for name, served in self._roster.served.items()})

    @property
    def served(self) -> Mapping[str, ModelInstance]:
        """The served models themselves, the default first."""
        return self._roster.served

    @property
    def down(self) -> frozenset[str]:
        """Names whose model has stopped working, and has no other in its place yet."""
        return self._roster.down

    @property
    def ready(self) -> bool:
        """Every model is warmed up and works, and nobody drains."""
        return not (self._draining or self._roster.down or self._ailments() or self._stuck_decode())

    @property
    def draining(self) -> bool:
        """Whether nothing new is taken any more."""
        return self._draining

    @property
    def full(self) -> bool:
        """Whether some model has no place for an image."""
        return any(served.admission.full for served in self._roster.served.values())

    def refusal(self, model: str, task: Task) -> OverloadedError | None:
        """Why an image for that model would be refused now, which is counted as the refusal of one; None while there is
        a place for it, or nobody of that name."""
        served = self._roster.served.get(model)
        return None if served is None or model in self._roster.down else served.pipeline.refusal(task)

    async def predict(
        self, model: str | None, images: Sequence[bytes], *, task: Task, top_k: int, wanted: Wanted = always
    ) -> Answer:
        """Answer one request. `model` None is the default; `top_k` 0 asks for features alone and is cut to the
        number of classes. Raises UnknownModelError, NoClassesError, ModelDownError, and what Pipeline.predict
        raises."""
        served = self._roster.find(model)
        return await answer(served.card, served.pipeline, images, task=task, top_k=top_k, wanted=wanted)

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
        image, DrainingError when serving is closed meanwhile, and ModelGoneError when the model is replaced or
        unloaded meanwhile.
        """
        served = self._roster.find(model)
        pixels = None
        if image is not None:
            transform = served.engine.model.transform
            pixels = await asyncio.wrap_future(self._decode_pool.preprocessed(image, transform))
        if self._roster.served.get(served.card.name) is not served:
            raise ModelGoneError(served.card.name)
        comparison = await self._lens.compare(served.engine, options, pixels, on_progress)
        self._around.telemetry.compared(comparison)
        return comparison

    async def load(self, name: str, source: str | None = None) -> Loaded:
        """Load a model beside those that are served, from a folder of `models_folder` or the catalog, or, without
        `source`, from where the one of its name came from. ModelChanges.load says the rest."""
        loaded = await self._changes.load(name, source)
        if self._supervisor is not None:
            self._supervisor.forget(name)
        return loaded

    async def unload(self, name: str) -> None:
        """Serve a model no more; the first of those that remain is the default. ModelChanges.unload says the rest."""
        await self._changes.unload(name)

    def queues(self) -> dict[str, QueueState]:
        """What each model has before it, by name."""
        return {name: served.queue_state() for name, served in self._roster.served.items()}

    def batchers(self) -> dict[str, BatcherState]:
        """How the thread of each model does, by name."""
        return {name: served.batcher_state() for name, served in self._roster.served.items()}

    def memory_bytes(self) -> dict[MemoryKind, int]:
        """Memory figures of the device, without synchronising it."""
        return memory.figures(self._around.placement.device)

    def utilization(self) -> float | None:
        """Share of the last second or less in which the device computed, 0..1; None where nothing tells."""
        return cuda.utilization(self._around.placement.device)

    def drain(self) -> None:
        """Take nothing new from now on; what was accepted is answered. Safe to call from a signal handler."""
        self._draining = True
        for served in self._roster.served.values():
            served.admission.close()

    def close(self, timeout_s: float) -> bool:
        """Drain, and end every thread. False if a decode, a forward or a load was still running after `timeout_s`."""
        until = perf_counter() + timeout_s
        self.drain()
        if self._supervisor is not None:
            self._supervisor.stop()
        self._lens.close()
        # What was accepted is decoded and queued before the batchers close; a caller who gave up has cancelled his.
        decoded = self._decode_pool.close(timeout_s)
        unchanging = self._changes.wait(max(0.0, until - perf_counter()))
        # Each of them, also after one that did not end.
        ended = [served.end(max(0.0, until - perf_counter())) for served in self._roster.served.values()]
        return decoded and unchanging and all(ended)

    def _stuck_decode(self) -> str | None:
        return self._decode_pool.stuck(self._around.options.longest_decode_s)

    def _ailments(self) -> Mapping[str, str]:
        ailments = self._roster.ailments()
        # Asked last: batchers that end because everything does are not ill, and nobody new comes to those that are.
        return {} if self._draining else ailments

    def _give_up_on_the_ill(self, reason: str) -> None:
        """Nobody will be answered by them any more, and nobody needs to wait for that."""
        for served in self._roster.served.values():
            self._changes.take_down(served)
        self._give_up(reason)
