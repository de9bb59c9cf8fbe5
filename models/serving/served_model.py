"""A served model: what answers the requests to one name."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Future
from contextlib import ExitStack
from dataclasses import dataclass

from models.inference.engine import Engine
from models.inference.image_job import BatchItem, ItemOutput, LocalQueue
from models.inference.pipeline import Pipeline
from models.interface.admission import Admission
from models.interface.results import ModelCard
from models.loading.catalog import ModelSource
from models.loading.load import LoadedModel
from models.networks.specs import ModelSpec
from models.scheduling.batcher import Batcher, Completed
from models.serving.model_instance import ModelInstance, ServingContext, start_instance

# Seconds to wait for the threads of one instance if another one cannot be started.
_CLOSE_TIMEOUT_S = 1.0


@dataclass(frozen=True, slots=True)
class ServedModel:
    """The unit that is loaded, replaced, restarted and unloaded: admission and pipeline of the requests to one name,
    and the model instances that run their batches, one on each device.

    `origin` finds the model's spec again, for a reload or a restart.
    """

    origin: ModelSource
    card: ModelCard
    instances: tuple[ModelInstance, ...]
    admission: Admission
    pipeline: Pipeline

    @property
    def engine(self) -> Engine:
        """The engine that the lens compares on."""
        return self.instances[0].engine

    @property
    def model(self) -> LoadedModel:
        """The model as it was loaded, with its transform and labels."""
        return self.engine.model

    def health_problem(self) -> str | None:
        """Return why an instance cannot answer, as a clause without subject; None while all are healthy."""
        return next(filter(None, (each.health_problem() for each in self.instances)), None)

    def abandon(self, error: Callable[[], Exception]) -> None:
        """Fail every image that is in a queue or a batch, each with its own error. Nothing new is accepted."""
        for each in self.instances:
            each.batcher.abandon(error)

    def close(self, timeout_s: float) -> bool:
        """Answer accepted images and end every thread. Returns False if a forward still ran after `timeout_s`."""
        # Every instance is closed, also after one that timed out.
        ended = [each.close(timeout_s) for each in self.instances]
        return all(ended)


class _LeastLoaded(LocalQueue):
    """The queue of a model on several devices: an image goes to the one with the fewest unanswered images. One whose
    batcher is not alive gets none: it would seem idle until the supervisor restarts the model."""

    def __init__(self, batchers: Sequence[Batcher[BatchItem, ItemOutput]]) -> None:
        self._batchers = batchers

    def submit(
        self, item: BatchItem, *, future: Future[Completed[ItemOutput]] | None = None
    ) -> Future[Completed[ItemOutput]]:
        by_load = sorted(self._batchers, key=lambda batcher: batcher.unanswered)
        # If none is alive, this one raises the reason, or the supervisor fails the image.
        chosen = next((batcher for batcher in by_load if batcher.alive), by_load[0])
        return chosen.submit(item, future=future)

    def expected_seconds(self, items: int) -> float:
        """How long the devices together need for `items`, at the pace of the slowest."""
        return max(batcher.expected_seconds(items) for batcher in self._batchers) / len(self._batchers)


def serve_model(
    spec: ModelSpec, origin: ModelSource, context: ServingContext, *, check_memory: bool = False
) -> ServedModel:
    """Load the model that `origin` found, and warm it up. Blocks. `check_memory`: refuse a model that may not fit
    alongside the served ones. Raises StartError, NoRoomError."""
    options = context.options
    instances: list[ModelInstance] = []
    with ExitStack() as unfinished:
        for placement in context.placements:
            instances.append(start_instance(spec, placement, context, check_memory=check_memory))
            unfinished.callback(instances[-1].close, _CLOSE_TIMEOUT_S)
        model = instances[0].engine.model
        batchers = [each.batcher for each in instances]
        queue: LocalQueue = batchers[0] if len(batchers) == 1 else _LeastLoaded(batchers)
        if context.remote is None:
            admission = Admission(options.queue_capacity, queue.expected_seconds)
        else:
            admission = context.remote.admission(model, queue)
            unfinished.callback(context.remote.forget, admission)
        pipeline = Pipeline(
            model,
            queue,
            context.decode_pool,
            admission,
            deadline_s=options.deadline_s,
            telemetry=context.telemetry,
        )
        served = ServedModel(origin, _card(model, instances), tuple(instances), admission, pipeline)
        unfinished.pop_all()
    return served


def _card(model: LoadedModel, instances: Sequence[ModelInstance]) -> ModelCard:
    return ModelCard(
        name=model.name,
        architecture=model.architecture,
        parameters=model.parameters,
        weight_bytes=model.weight_bytes,
        input_size=model.transform.crop,
        classes=model.network.classes,
        feature_dimensions=model.network.dimensions,
        feature_shape=model.network.feature_shape,
        feature_layer=None if model.features is None else model.features.node,
        device=",".join(each.id.device for each in instances),
        dtype=model.placement.dtype_name,
        backend=model.placement.backend,
        fingerprint=model.fingerprint,
        training=model.network.training,
        load_seconds=model.load_seconds,
        version=1,
        mean=model.transform.mean,
        std=model.transform.std,
    )
