"""A served model: what answers the requests to one name."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass

from models.inference.engine import Engine
from models.inference.pipeline import Pipeline
from models.interface.admission import Admission
from models.interface.results import ModelCard
from models.interface.telemetry import AdmissionState
from models.loading.catalog import ModelSource
from models.loading.load import LoadedModel
from models.networks.specs import ModelSpec
from models.serving.model_instance import CLOSE_TIMEOUT_S, ModelInstance, ServingContext, start_instance


@dataclass(frozen=True, slots=True)
class ServedModel:
    """The unit that is loaded, replaced, restarted and unloaded: admission and pipeline of the requests to one name,
    and the model instance that runs their batches. Only this module knows that there is one instance.

    `origin` finds the model's spec again, for a reload or a restart.
    """

    origin: ModelSource
    card: ModelCard
    instance: ModelInstance
    admission: Admission
    pipeline: Pipeline

    @property
    def instances(self) -> tuple[ModelInstance, ...]:
        return (self.instance,)

    @property
    def devices(self) -> list[str]:
        return [each.id.device for each in self.instances]

    @property
    def engine(self) -> Engine:
        """The engine that the lens compares on."""
        return self.instance.engine

    @property
    def model(self) -> LoadedModel:
        """The model as it was loaded, with its transform and labels."""
        return self.engine.model

    def admission_state(self) -> AdmissionState:
        return AdmissionState(self.admission.in_flight, self.admission.capacity)

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


def serve_model(
    spec: ModelSpec, origin: ModelSource, context: ServingContext, *, check_memory: bool = False
) -> ServedModel:
    """Load the model that `origin` found, and warm it up. Blocks. `check_memory`: refuse a model that may not fit
    alongside the served ones. Raises StartError, NoRoomError."""
    options = context.options
    instance = start_instance(spec, context, check_memory=check_memory)
    model, queue = instance.engine.model, instance.batcher
    with ExitStack() as unfinished:
        unfinished.callback(instance.close, CLOSE_TIMEOUT_S)
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
        served = ServedModel(origin, _card(model), instance, admission, pipeline)
        unfinished.pop_all()
    return served


def _card(model: LoadedModel) -> ModelCard:
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
        device=str(model.placement.device),
        dtype=model.placement.dtype_name,
        backend=model.placement.backend,
        fingerprint=model.fingerprint,
        training=model.network.training,
        load_seconds=model.load_seconds,
        version=1,
        mean=model.transform.mean,
        std=model.transform.std,
    )
