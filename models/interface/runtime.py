"""The runtime: the interface of the inference side, which the HTTP side calls. It needs no torch."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Protocol

from gradless.records import Comparison, ComparisonOptions, Progress
from models.interface.errors import AtCapacityError
from models.interface.request import InferenceRequest
from models.interface.results import Answer, Loaded, ModelCard
from models.interface.telemetry import AdmissionState, DeviceState, InstanceId, InstanceState, Task, Telemetry


class Runtime(Protocol):
    """All models of the service. models.serving.runtime.LocalRuntime runs them in this process, and
    models.workers.worker_runtime.WorkerRuntime in the engine process.

    Coroutines belong to one event loop. `model` is the name of a served model; None is the default model.
    """

    @property
    def cards(self) -> Mapping[str, ModelCard]:
        """The served models by name, the default first."""

    @property
    def ready(self) -> bool:
        """Whether every model is warmed up and healthy, and the service is not draining."""

    @property
    def draining(self) -> bool:
        """Whether new requests are refused because the service is stopping."""

    @property
    def down(self) -> frozenset[str]:
        """Names of models that have stopped working and are being restarted."""

    @property
    def half_full(self) -> bool:
        """Whether at least half of some model's capacity is in use."""

    def refusal(self, model: str, task: Task) -> AtCapacityError | None:
        """Return why one image for `model`, whose request's head has arrived, would be refused, and count it as a
        refused image.

        None while the model has capacity, and for a model that is down or unknown. Images for which this has returned
        None in the same iteration of the event loop are counted in.
        """

    async def predict(self, model: str | None, request: InferenceRequest) -> Answer:
        """Answer one request. `top_k` is limited to the model's number of classes. An image at fault has its
        ImageError in the answer.

        Cancelling the call drops the images that are not in a batch yet.

        Raises UnknownModelError, ModelDownError, NoClassesError, AtCapacityError, DrainingError, ModelGoneError,
        OutOfMemoryError, DeadlineExceededError, ForwardError.
        """

    async def compare(
        self,
        model: str | None,
        options: ComparisonOptions,
        image: bytes | None = None,
        on_progress: Callable[[Progress], None] = lambda _progress: None,
    ) -> Comparison:
        """Run the lens on a served model, with an encoded `image` or random pixels. One comparison runs at a time.

        `on_progress` is called on the event loop before each forward. Cancelling the call ends the comparison before
        its next forward.

        Raises UnknownModelError, ModelDownError, ComparisonRunningError, ComparisonTooLargeError, ImageError;
        DrainingError if the runtime closes meanwhile, ModelGoneError if the model is replaced or unloaded meanwhile.
        """

    async def load(self, name: str, source: str | None = None) -> Loaded:
        """Load a model and serve it as `name`. It replaces the model of that name in one step, if there is one.

        `source` is a folder below the models folder, or a name of the catalog; None is the source of the model of that
        name. Returns once the replaced model has answered its requests and its memory is free. Cancelling the call
        does not stop the load.

        Raises UnknownModelError without `source`, ModelNotLoadedError, NoRoomError, LoadTimeoutError,
        ModelChangingError, TooManyModelsError, DrainingError.
        """

    async def unload(self, name: str) -> None:
        """Stop serving a model. The first of the other models becomes the default.

        Returns once the model has answered its requests and its memory is free. Cancelling the call does not stop it.

        Raises UnknownModelError, LastModelError, ModelChangingError, DrainingError.
        """

    # Empty in an HTTP worker, since the engine process reports them for the whole service.

    def admissions(self) -> Mapping[str, AdmissionState]:
        """The images in flight of each model."""

    def instances(self) -> Mapping[InstanceId, InstanceState]:
        """The batcher of each model instance."""

    def devices(self) -> Mapping[str, DeviceState]:
        """The devices of all model instances by name, read without synchronising them."""

    def drain(self) -> None:
        """Refuse new requests from now on; accepted ones are answered. Safe to call from a signal handler."""

    def close(self, timeout_s: float) -> bool:
        """Drain, and end every thread. Blocks; call it from another thread than the event loop's.

        Returns False if a decode, a forward or a load still ran after `timeout_s`.
        """


# Loads and warms up the models, which blocks and may raise StartError. Called once, when the application starts.
StartRuntime = Callable[[Telemetry], Runtime]
