"""A model instance: one model on one device, with its engine and batcher. How a process serves models."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Protocol

from models import backends
from models.backends import DEFAULT_CACHE_FOLDER, BackendOptions
from models.hardware import memory
from models.hardware.placement import Placement
from models.images.decode_pool import DecodePool
from models.inference.engine import Engine, with_fresh_conversion
from models.inference.image_job import BatchItem, ItemOutput, LocalQueue
from models.interface.admission import Admission
from models.interface.errors import NoRoomError
from models.interface.model_sources import Precision
from models.interface.request import ImageLimits
from models.interface.telemetry import BatchReport, InstanceId, InstanceState, Telemetry
from models.loading import catalog
from models.loading.calibration import Calibration
from models.loading.load import LoadedModel, load
from models.networks.specs import ModelSpec
from models.scheduling.batcher import Batcher
from models.scheduling.oom_splitting import SplittingRun


@dataclass(frozen=True, slots=True, kw_only=True)
class ServingOptions:
    """How to serve.

    models: names of the catalog or specs; the first is the default.
    models_folder: folder of the models that can be loaded by name while others are served.
    max_models: how many models may be served at once.
    calibration_folder: images for int8; required for int8, otherwise unused.
    device: as backends.place_all.
    max_batch_size: None lets the backend choose it by device and model.
    fixed_batch: run every forward with one batch shape.
    exact_jpeg: decode JPEGs in full, also for models whose transform does not say so.
    max_batch_delay_s: longest delay of an item that waits for its batch to fill; 0 never delays.
    queue_capacity: images that a model admits at once.
    decode_threads: None chooses it by the number of cores (cores.decode_threads).
    cores: number of cores to use, for processes that share a machine; None uses all.
    deadline_s: a request without an answer by then fails.
    load_timeout_s: a load or restart that takes longer fails.
    forward_timeout_s: a forward that takes longer is considered hung, and its model is restarted.
    """

    models: Sequence[str | ModelSpec] = (catalog.DEFAULT_MODEL,)
    models_folder: Path | None = None
    max_models: int = 16
    device: str = "auto"
    precision: Precision = "fp32"
    backend: str = "auto"
    cache_folder: Path = DEFAULT_CACHE_FOLDER
    calibration_folder: Path | None = None
    max_batch_size: int | None = None
    fixed_batch: bool = False
    exact_jpeg: bool = False
    max_batch_delay_s: float = 0.0
    queue_capacity: int = 256
    decode_threads: int | None = None
    cores: int | None = None
    limits: ImageLimits = field(default_factory=ImageLimits)
    deadline_s: float = 30.0
    load_timeout_s: float = 600.0
    forward_timeout_s: float = 60.0

    @property
    def longest_decode_s(self) -> float:
        """Seconds after which a decode is considered hung. Never less than the deadline, up to which clients wait."""
        return max(self.deadline_s, self.forward_timeout_s)

    def longest_decode_wait_s(self, processes: int = 1) -> float:
        """Return the predicted seconds of expensive decodes that may wait in one of so many processes, which share
        cores and memory. The images of one request that are in a decode pool at once always have room."""
        return max(self.deadline_s / 4 / processes, 2 * self.limits.max_decode_seconds)


class RemoteAdmission(Protocol):
    """Admits images in other processes, the HTTP workers, instead of this one."""

    @property
    def queue_capacity(self) -> int:
        """How many items a model's queue must hold. That includes cancelled ones, which the batcher removes only when
        it reaches them."""

    def admission(self, model: LoadedModel, queue: LocalQueue) -> Admission:
        """Return the admission of a model that is warmed up. The model is then served, or passed to `forget`."""

    def forget(self, admission: Admission) -> None:
        """Release an admission whose model was never served. From any thread."""

    def batch_over(self, report: BatchReport) -> None:
        """A batch was answered. Called by the thread that ran it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ServingContext:
    """What all model instances of a process share. Each model has one instance for each of `placements`."""

    options: ServingOptions
    placements: tuple[Placement, ...]
    calibration: Calibration | None
    decode_pool: DecodePool
    telemetry: Telemetry
    remote: RemoteAdmission | None = None


@dataclass(frozen=True, slots=True)
class ModelInstance:
    """One model on one device, with its engine and batcher. `run` is the engine's `run`, which splits a batch that
    exceeds the device's memory."""

    id: InstanceId
    engine: Engine
    run: SplittingRun[BatchItem, ItemOutput]
    batcher: Batcher[BatchItem, ItemOutput]
    forward_timeout_s: float

    def state(self) -> InstanceState:
        batcher = self.batcher
        return InstanceState(
            depth=batcher.depth,
            oldest_age_seconds=batcher.oldest_age_seconds(),
            alive=batcher.alive,
            running_seconds=batcher.running_seconds(),
            max_batch_size=self.run.safe_size or self.engine.hints.max_batch_size,
        )

    def health_problem(self) -> str | None:
        """Return why it cannot answer, as a clause without subject; None while it is healthy."""
        if not self.batcher.alive:
            return "has lost a thread of its batcher"
        running_s = self.batcher.running_seconds()
        if running_s > self.forward_timeout_s:
            return f"has run one forward for {running_s:.0f} s"
        return None

    def close(self, timeout_s: float) -> bool:
        """Answer accepted images and end every thread. Returns False if a forward still ran after `timeout_s`."""
        closed = self.batcher.close(timeout_s)
        if closed:
            self.engine.close()
        return closed


def start_instance(
    spec: ModelSpec, placement: Placement, context: ServingContext, *, check_memory: bool
) -> ModelInstance:
    """Load a model on a device, and warm it up. Blocks. `check_memory`: refuse a model that may not fit alongside the
    served ones. Raises StartError, NoRoomError."""
    model = load(spec, placement, context.calibration, exact_jpeg=context.options.exact_jpeg)
    if check_memory:
        _check_memory(model)
    return with_fresh_conversion(model, lambda fresh: _start_loaded(model, spec, context, fresh=fresh))


def _start_loaded(model: LoadedModel, spec: ModelSpec, context: ServingContext, *, fresh: bool) -> ModelInstance:
    options, device = context.options, model.placement.device
    instance = InstanceId(model.name, str(device))
    backend = backends.make(
        model,
        BackendOptions(
            max_batch_size=spec.served_as.max_batch_size or options.max_batch_size,
            fixed_shape=options.fixed_batch,
            cache_folder=options.cache_folder,
            fresh=fresh,
        ),
    )
    engine = Engine(model, backend)
    run = SplittingRun(
        engine.run,
        instance=instance,
        out_of_memory=memory.ran_out,
        release_memory=partial(memory.trim, device),
        telemetry=context.telemetry,
    )

    def prepare() -> None:
        engine.prepare_thread()
        engine.warm_up()

    def on_batch(report: BatchReport) -> None:
        if context.remote is not None:
            context.remote.batch_over(report)
        context.telemetry.batch_ran(report)

    try:
        batcher: Batcher[BatchItem, ItemOutput] = Batcher(
            run,
            name=instance.model,
            device=instance.device,
            max_batch_size=engine.hints.max_batch_size,
            max_batch_delay_s=options.max_batch_delay_s,
            queue_capacity=options.queue_capacity if context.remote is None else context.remote.queue_capacity,
            max_concurrent_batches=engine.hints.max_concurrent_batches,
            overlap_min_size=engine.hints.overlap_min_size,
            fairness_key=lambda item: item.request.fairness_key,
            prepare=prepare,
            on_batch=on_batch,
        )
    except BaseException:
        engine.close()
        raise
    return ModelInstance(instance, engine, run, batcher, options.forward_timeout_s)


def _check_memory(model: LoadedModel) -> None:
    """Raise NoRoomError unless as much memory as the loaded weights take is free again. The backend needs its own copy
    of them, and memory for a forward. Linux would grant it and then kill the process."""
    free = memory.free_bytes(model.placement.device)
    if model.weight_bytes > free:
        needed = f"its weights are {model.weight_bytes / 1e6:.0f} MB"
        raise NoRoomError(model.name, f"{needed}, and {free / 1e6:.0f} MB are left.")
