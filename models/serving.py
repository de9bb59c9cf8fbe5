"""Every model this process serves, from start to stop: what app/main.py holds, and a notebook can."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Literal

from models import backends, catalog, devices
from models.admission import Admission
from models.batching import Batcher
from models.catalog import ModelSpec
from models.comparison import Comparison
from models.devices import BackendName, Precision
from models.engine import Engine, Item, Output
from models.errors import ComparisonRunningError, UnknownModelError
from models.gradmodes import compare
from models.limits import ImageLimits
from models.loading import load
from models.pipeline import Pipeline
from models.predictions import Answer, ModelCard
from models.telemetry import MemoryKind, QueueState, Task, Telemetry


@dataclass(frozen=True, slots=True, kw_only=True)
class ServingOptions:
    """How to serve. `models` are names of the catalog, or entries of one's own; the first is the default.
    `decode_threads` None: one for each core the process may use.
    """

    models: Sequence[str | ModelSpec] = (catalog.DEFAULT_MODEL,)
    device: str = "auto"
    precision: Precision = "fp32"
    backend: BackendName | Literal["auto"] = "auto"
    cache_folder: Path = Path("~/.cache/gradless")
    max_batch_size: int = 32
    max_wait_s: float = 0.0
    queue_capacity: int = 256
    decode_threads: int | None = None
    limits: ImageLimits = field(default_factory=ImageLimits)
    deadline_s: float = 30.0


@dataclass(frozen=True, slots=True)
class _Served:
    card: ModelCard
    engine: Engine
    batcher: Batcher[Item, Output]
    admission: Admission
    pipeline: Pipeline


class Serving:
    """Loads and warms up on construction, which blocks; after that its coroutines belong to one event loop.

    Raises StartError when a model cannot be served as asked.
    """

    def __init__(self, options: ServingOptions, telemetry: Telemetry) -> None:
        self._placement = devices.place(options.device, options.precision, options.backend)
        devices.keep_freed_memory()
        self._decode_threads = options.decode_threads or devices.available_cores()
        self._decode_pool = ThreadPoolExecutor(
            self._decode_threads,
            thread_name_prefix="decode",
            initializer=devices.use_one_core_in_this_thread,
        )
        self._lens = ThreadPoolExecutor(1, thread_name_prefix="lens", initializer=_use_all_cores)
        self._comparing = False
        self._closing = threading.Event()
        self._telemetry = telemetry
        self._served: dict[str, _Served] = {}
        try:
            for wanted in options.models:
                spec = catalog.find(wanted) if isinstance(wanted, str) else wanted
                self._served[spec.name] = self._serve(spec, options)
        except BaseException:
            self.close(timeout_s=0)
            raise

    @property
    def cards(self) -> Mapping[str, ModelCard]:
        """The served models by name, the default first."""
        return MappingProxyType({name: served.card for name, served in self._served.items()})

    @property
    def ready(self) -> bool:
        """Warmed up, every batcher's thread alive, and not draining."""
        return all(served.batcher.alive and not served.admission.closed for served in self._served.values())

    async def predict(self, model: str | None, images: Sequence[bytes], *, task: Task, top_k: int) -> Answer:
        """Answer one request. `model` None is the default; `top_k` 0 asks for features alone and is cut to the
        number of classes. Raises UnknownModelError, and what Pipeline.predict raises."""
        served = self._find(model)
        card = served.card
        results = await served.pipeline.predict(images, task=task, top_k=min(top_k, card.classes))
        return Answer(card.name, card.fingerprint, card.feature_dimensions, results)

    async def compare(self, model: str | None, *, batch_size: int, iterations: int) -> Comparison:
        """Run the lens on a served model. Cancelling it ends the comparison before its next forward.

        Raises UnknownModelError, ComparisonRunningError.
        """
        engine = self._find(model).engine
        if self._comparing:
            raise ComparisonRunningError
        self._comparing = True
        abandoned = threading.Event()
        running = self._lens.submit(
            compare,
            engine,
            batch_size=batch_size,
            iterations=iterations,
            abandoned=lambda: abandoned.is_set() or self._closing.is_set(),
        )
        # Not when the caller leaves, but when the thread is free again.
        loop = asyncio.get_running_loop()
        running.add_done_callback(lambda _: loop.call_soon_threadsafe(self._comparison_ended))
        try:
            comparison = await asyncio.wrap_future(running)
        finally:
            abandoned.set()
        self._telemetry.compared(comparison)
        return comparison

    def queues(self) -> dict[str, QueueState]:
        """What each model has before it, by name."""
        return {
            name: QueueState(served.batcher.depth, served.batcher.oldest_age_seconds(), served.admission.in_flight)
            for name, served in self._served.items()
        }

    def memory_bytes(self) -> dict[MemoryKind, int]:
        """Memory figures of the device, without synchronising it."""
        return devices.memory_bytes(self._placement.device)

    def drain(self) -> None:
        """Take nothing new from now on; what was accepted is answered. Safe to call from a signal handler."""
        for served in self._served.values():
            served.admission.close()

    def close(self, timeout_s: float) -> bool:
        """Drain, and end every thread. False if a forward was still running after `timeout_s`."""
        self.drain()
        self._closing.set()
        self._lens.shutdown(wait=False, cancel_futures=True)
        # What was accepted is decoded and queued before the batchers close; a caller who gave up has cancelled his.
        self._decode_pool.shutdown(wait=True)
        closed = [served for served in self._served.values() if served.batcher.close(timeout_s)]
        for served in closed:
            served.engine.close()
        return len(closed) == len(self._served)

    def _find(self, model: str | None) -> _Served:
        if model is None:
            return next(iter(self._served.values()))
        if model not in self._served:
            raise UnknownModelError(model, list(self._served))
        return self._served[model]

    def _serve(self, spec: ModelSpec, options: ServingOptions) -> _Served:
        model = load(spec, self._placement)
        backend = backends.make(
            model, max_batch_size=options.max_batch_size, cache_folder=options.cache_folder.expanduser()
        )
        engine = Engine(model, backend)

        def prepare() -> None:
            _use_all_cores()
            engine.warm_up()

        batcher = Batcher(
            engine.run,
            name=spec.name,
            max_batch_size=options.max_batch_size,
            max_wait_s=options.max_wait_s,
            queue_capacity=options.queue_capacity,
            prepare=prepare,
            on_batch=self._telemetry.batch_ran,
        )
        batcher.wait_until_ready()
        admission = Admission(options.queue_capacity, batcher.expected_seconds)
        pipeline = Pipeline(
            model,
            batcher,
            self._decode_pool,
            admission,
            decode_threads=self._decode_threads,
            limits=options.limits,
            deadline_s=options.deadline_s,
            telemetry=self._telemetry,
        )
        card = ModelCard(
            name=spec.name,
            architecture=model.architecture,
            parameters=model.parameters,
            weight_bytes=model.weight_bytes,
            input_size=model.transform.crop,
            classes=model.network.classes,
            feature_dimensions=model.network.dimensions,
            device=str(model.placement.device),
            dtype=str(model.placement.dtype).removeprefix("torch."),
            backend=model.placement.backend,
            fingerprint=model.fingerprint,
            training=model.network.training,
            load_seconds=model.load_seconds,
        )
        return _Served(card, engine, batcher, admission, pipeline)

    def _comparison_ended(self) -> None:
        self._comparing = False


def _use_all_cores() -> None:
    devices.use_cores_in_this_thread(devices.available_cores())
