"""The runtime of one process: all its models, from start to stop. The application holds one; so can a notebook."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from time import perf_counter

from gradless.memory import prepare_profiler
from gradless.records import Comparison, ComparisonOptions, Progress
from models.backends import place_all
from models.hardware import cores, memory
from models.hardware.placement import utilization
from models.images.decode_pool import DecodePool
from models.inference.pipeline import answer
from models.interface.errors import AtCapacityError, ModelGoneError
from models.interface.request import InferenceRequest
from models.interface.results import Answer, Loaded, ModelCard
from models.interface.runtime import Runtime
from models.interface.telemetry import AdmissionState, DeviceState, InstanceId, InstanceState, Task, Telemetry
from models.loading import catalog
from models.loading.calibration import Calibration
from models.serving.lens import Lens
from models.serving.model_changes import ModelChanges
from models.serving.model_instance import RemoteAdmission, ServingContext, ServingOptions
from models.serving.registry import ModelRegistry
from models.serving.served_model import ServedModel
from models.serving.supervisor import Supervisor

__all__ = ["LocalRuntime", "ServingOptions"]


class LocalRuntime(Runtime):
    """A runtime whose models run in this process. models.interface.runtime.Runtime describes the methods.

    The constructor loads the models and warms them up, which blocks. Raises StartError if a model cannot be served as
    `options` ask. A model that stops working is restarted; `shut_down` is called with the reason, from another thread,
    if that is not possible. `remote` admits images of other processes.
    """

    def __init__(
        self,
        options: ServingOptions,
        telemetry: Telemetry,
        shut_down: Callable[[str], None] = lambda _reason: None,
        remote: RemoteAdmission | None = None,
    ) -> None:
        if options.cores is not None:
            cores.limit_cores(options.cores)
        placements = place_all(options.device, options.precision, options.backend)
        specs = catalog.find_all(options.models)
        calibration = Calibration.for_precision(options.precision, options.calibration_folder)
        memory.retain_freed_pages()
        prepare_profiler()
        self._decode_pool = DecodePool(
            options.decode_threads or cores.decode_threads(),
            options.limits,
            longest_wait_s=options.longest_decode_wait_s(),
        )
        self._context = ServingContext(
            options=options,
            placements=placements,
            calibration=calibration,
            decode_pool=self._decode_pool,
            telemetry=telemetry,
            remote=remote,
        )
        self._draining = False
        self._shut_down = shut_down
        self._registry = ModelRegistry()
        self._lens = Lens()
        self._changes = ModelChanges(self._registry, self._context, self._lens, lambda: self._draining)
        self._supervisor: Supervisor | None = None
        try:
            for spec, named in zip(specs, options.models, strict=True):
                self._changes.start(spec, catalog.from_operator(named))
            self._supervisor = Supervisor(
                self._health_problems, self._changes.restart, self._on_fatal, fatal_problem=self._stuck_decode
            )
        except BaseException:
            self.close(timeout_s=0)
            raise

    @property
    def cards(self) -> Mapping[str, ModelCard]:
        return {name: served.card for name, served in self.models.items()}

    @property
    def models(self) -> Mapping[str, ServedModel]:
        """The served models by name, the default first."""
        return self._registry.models

    @property
    def down(self) -> frozenset[str]:
        return self._registry.down

    @property
    def ready(self) -> bool:
        return not (self._draining or self._registry.down or self._health_problems() or self._stuck_decode())

    @property
    def draining(self) -> bool:
        return self._draining

    @property
    def half_full(self) -> bool:
        return any(served.admission.half_full for served in self.models.values())

    def refusal(self, model: str, task: Task) -> AtCapacityError | None:
        served = self.models.get(model)
        return None if served is None or model in self._registry.down else served.pipeline.refusal(task)

    async def predict(self, model: str | None, request: InferenceRequest) -> Answer:
        served = self._registry.find(model)
        return await answer(served.card, served.pipeline, request)

    async def compare(
        self,
        model: str | None,
        options: ComparisonOptions,
        image: bytes | None = None,
        on_progress: Callable[[Progress], None] = lambda _progress: None,
    ) -> Comparison:
        served = self._registry.find(model)
        pixels = None
        if image is not None:
            pixels = await asyncio.wrap_future(self._decode_pool.submit(image, served.model.transform))
        if self.models.get(served.card.name) is not served:
            raise ModelGoneError(served.card.name)
        comparison = await self._lens.compare(served.engine, options, pixels, on_progress)
        self._context.telemetry.compared(comparison)
        return comparison

    async def load(self, name: str, source: str | None = None) -> Loaded:
        loaded = await self._changes.load(name, source)
        if self._supervisor is not None:
            self._supervisor.forget(name)
        return loaded

    async def unload(self, name: str) -> None:
        await self._changes.unload(name)

    def admissions(self) -> dict[str, AdmissionState]:
        admissions = {name: served.admission for name, served in self.models.items()}
        return {name: AdmissionState(each.in_flight, each.capacity) for name, each in admissions.items()}

    def instances(self) -> dict[InstanceId, InstanceState]:
        return {each.id: each.state() for served in self.models.values() for each in served.instances}

    def devices(self) -> dict[str, DeviceState]:
        devices = (placement.device for placement in self._context.placements)
        return {str(device): DeviceState(memory.figures(device), utilization(device)) for device in devices}

    def drain(self) -> None:
        self._draining = True
        for served in self.models.values():
            served.admission.close()

    def close(self, timeout_s: float) -> bool:
        until = perf_counter() + timeout_s
        self.drain()
        if self._supervisor is not None:
            self._supervisor.stop()
        self._lens.close()
        # The decode pool closes first: accepted images must be in the queue before the batchers close.
        decoded = self._decode_pool.close(timeout_s)
        unchanging = self._changes.wait(max(0.0, until - perf_counter()))
        # A list: every model is closed, also after one that timed out.
        ended = [served.close(max(0.0, until - perf_counter())) for served in self.models.values()]
        return decoded and unchanging and all(ended)

    def _stuck_decode(self) -> str | None:
        return self._decode_pool.stuck(self._context.options.longest_decode_s)

    def _health_problems(self) -> Mapping[str, str]:
        problems = self._registry.health_problems()
        # Read after the problems: batchers that end because the runtime drains are not unhealthy.
        return {} if self._draining else problems

    def _on_fatal(self, reason: str) -> None:
        """Answer the clients of unhealthy models with an error, and shut down."""
        for served in self.models.values():
            self._changes.mark_down(served)
        self._shut_down(reason)
