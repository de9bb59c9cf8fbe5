"""One model as it is served: loaded, warmed up, with its queue and its way for images."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Protocol

from models import backends
from models.backends import DEFAULT_CACHE_FOLDER, BackendOptions
from models.hardware import memory
from models.hardware.placement import Placement, Precision
from models.images.decode_pool import DecodePool
from models.inference.backend_agreement import with_fresh_conversion
from models.inference.batch_item import BatchItem, ItemOutput
from models.inference.engine import Engine
from models.inference.pipeline import Pipeline
from models.interface.errors import NoRoomError
from models.interface.home import expand_home
from models.interface.image_limits import ImageLimits
from models.interface.results import ModelCard
from models.interface.telemetry import BatcherState, BatchReport, QueueState, Telemetry
from models.loading import catalog
from models.loading.calibration import Calibration
from models.loading.load import LoadedModel, load
from models.loading.sources import ModelSource
from models.networks.specs import ModelSpec
from models.scheduling.admission import Admission
from models.scheduling.batcher import Batcher
from models.scheduling.oom_splitting import SplittingRun

# For the threads of a model that cannot be served after all; a warm-up that goes on longer is not waited for.
_ENDING_S = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class ServingOptions:
    """How to serve. `models` are names of the catalog, or entries of one's own; the first is the default.
    `max_batch_size` None: as the backend prefers. `decode_threads` None: what cores.decode_threads says.
    `cores`: as many of these, for a process that shares them with others by agreement; None is all.
    `calibration_folder`: images, for int8 alone. `fixed_batch`: every forward is of one shape. `forward_timeout_s`: a
    forward that takes longer has hung, and its model is started anew. `models_folder`: where models of one's own
    lie that are loaded by name while others are served; `max_models`: how many may be served at once.
    `load_timeout_s`: a load that takes longer while others are served, or a restart, has failed.
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
    max_wait_s: float = 0.0
    queue_capacity: int = 256
    decode_threads: int | None = None
    cores: int | None = None
    limits: ImageLimits = field(default_factory=ImageLimits)
    deadline_s: float = 30.0
    load_timeout_s: float = 600.0
    forward_timeout_s: float = 60.0

    @property
    def longest_decode_s(self) -> float:
        """Until the deadline somebody waits for a decode, however long a forward may take."""
        return max(self.deadline_s, self.forward_timeout_s)


class RemoteAdmission(Protocol):
    """Where images come from, if not from this process."""

    @property
    def queue_capacity(self) -> int:
        """Items that the queue of a model must have room for, with those whose clients have left: of these the batcher
        hears only when it comes to them."""

    def admission(self, model: LoadedModel, batcher: Batcher[BatchItem, ItemOutput]) -> Admission:
        """For a model that is warmed up, and will be served or given to `forget`."""

    def forget(self, admission: Admission) -> None:
        """The model of that admission was never served, and will not be. From any thread."""

    def batch_over(self, report: BatchReport) -> None:
        """A batch's callers have their answers. From the thread that ran it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ServingContext:
    """What the models of a process have in common."""

    options: ServingOptions
    placement: Placement
    calibration: Calibration | None
    decode_pool: DecodePool
    telemetry: Telemetry
    reception: RemoteAdmission | None = None


@dataclass(frozen=True, slots=True)
class ModelInstance:
    """Everything of one model, and where it comes from."""

    origin: ModelSource
    card: ModelCard
    engine: Engine
    run: SplittingRun[BatchItem, ItemOutput]
    batcher: Batcher[BatchItem, ItemOutput]
    admission: Admission
    pipeline: Pipeline
    options: ServingOptions

    def queue_state(self) -> QueueState:
        return QueueState(
            self.batcher.depth, self.batcher.oldest_age_seconds(), self.admission.in_flight, self.admission.capacity
        )

    def batcher_state(self) -> BatcherState:
        most = self.run.safe_size or self.batcher.max_batch_size
        return BatcherState(self.batcher.alive, self.batcher.running_seconds(), most)

    def ailment(self) -> str | None:
        """Why callers will wait in vain, as the end of a sentence; None while all is well."""
        if not self.batcher.alive:
            return "has lost a thread of its batcher"
        running_s = self.batcher.running_seconds()
        if running_s > self.options.forward_timeout_s:
            return f"has run one forward for {running_s:.0f} s"
        return None

    def end(self, timeout_s: float) -> bool:
        """Answer what was accepted, and end every thread. False if a forward was still running after `timeout_s`."""
        ended = self.batcher.close(timeout_s)
        if ended:
            self.engine.close()
        return ended


def serve_model(
    spec: ModelSpec, origin: ModelSource, around: ServingContext, *, beside_others: bool = False
) -> ModelInstance:
    """Load and warm up what was found at `origin`, which blocks. `beside_others`: not at any price, for what is served
    already needs memory too. Raises StartError, NoRoomError."""
    model = load(spec, around.placement, around.calibration)
    if beside_others:
        _check_room(model)
    return with_fresh_conversion(model, lambda fresh: _serve_loaded(model, spec, origin, around, fresh=fresh))


def _serve_loaded(
    model: LoadedModel, spec: ModelSpec, origin: ModelSource, around: ServingContext, *, fresh: bool
) -> ModelInstance:
    options = around.options
    with ExitStack() as unfinished:
        backend = backends.make(
            model,
            BackendOptions(
                max_batch_size=options.max_batch_size,
                fixed_shape=options.fixed_batch,
                cache_folder=expand_home(options.cache_folder),
                fresh=fresh,
            ),
        )
        engine = Engine(model, backend)
        unfinished.callback(engine.close)

        def prepare() -> None:
            engine.prepare_thread()
            engine.warm_up()

        def over(report: BatchReport) -> None:
            if around.reception is not None:
                around.reception.batch_over(report)
            around.telemetry.batch_ran(report)

        run = SplittingRun(
            engine.run,
            model=spec.name,
            out_of_memory=memory.ran_out,
            release_memory=partial(memory.trim, model.placement.device),
            telemetry=around.telemetry,
        )
        batcher: Batcher[BatchItem, ItemOutput] = Batcher(
            run,
            name=spec.name,
            max_batch_size=engine.hints.max_batch_size,
            max_wait_s=options.max_wait_s,
            queue_capacity=options.queue_capacity if around.reception is None else around.reception.queue_capacity,
            lanes=engine.hints.max_in_flight,
            room_from=engine.hints.overlap_min_size,
            prepare=prepare,
            on_batch=over,
        )
        unfinished.callback(batcher.close, _ENDING_S)
        batcher.wait_until_ready()
        if around.reception is None:
            admission = Admission(options.queue_capacity, batcher.expected_seconds)
        else:
            admission = around.reception.admission(model, batcher)
            unfinished.callback(around.reception.forget, admission)
        pipeline = Pipeline(
            model,
            batcher,
            around.decode_pool,
            admission,
            deadline_s=options.deadline_s,
            telemetry=around.telemetry,
        )
        served = ModelInstance(origin, _card(spec, model), engine, run, batcher, admission, pipeline, options)
        unfinished.pop_all()
    return served


def _check_room(model: LoadedModel) -> None:
    """The weights are there; the backend has its own form of them, and its forward needs memory as well. Where there is
    not as much again as they take, Linux would not refuse it but end the process."""
    free = memory.free_bytes(model.placement.device)
    if model.weight_bytes > free:
        needed = f"its weights are {model.weight_bytes / 1e6:.0f} MB"
        raise NoRoomError(model.name, f"{needed}, and beside them {free / 1e6:.0f} MB are left.")


def _card(spec: ModelSpec, model: LoadedModel) -> ModelCard:
    return ModelCard(
        name=spec.name,
        architecture=model.architecture,
        parameters=model.parameters,
        weight_bytes=model.weight_bytes,
        input_size=model.transform.crop,
        classes=model.network.classes,
        feature_dimensions=model.network.dimensions,
        feature_shape=model.network.feature_shape,
        feature_layer=None if model.features is None else model.features.node,
        device=str(model.placement.device),
        dtype=model.placement.dtype_name,
        backend=model.placement.backend,
        fingerprint=model.fingerprint,
        training=model.network.training,
        load_seconds=model.load_seconds,
        version=1,
    )
