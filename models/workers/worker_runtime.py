"""The runtime of an HTTP worker: it admits and decodes images, and their forwards run in the engine process."""

from __future__ import annotations

import asyncio
import logging
import os
import socket
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from types import MappingProxyType

from gradless.records import Comparison, ComparisonOptions, Progress
from models.hardware import memory
from models.images.decode_pool import DecodePool
from models.inference.pipeline import Pipeline, answer
from models.interface.admission import Admission
from models.interface.errors import AtCapacityError, ModelDownError
from models.interface.request import InferenceRequest
from models.interface.results import Answer, Loaded, ModelCard
from models.interface.runtime import Runtime
from models.interface.telemetry import AdmissionState, DeviceState, InstanceId, InstanceState, Task, Telemetry
from models.serving.model_instance import ServingOptions
from models.serving.registry import find_model
from models.serving.supervisor import Supervisor
from models.workers.channel import Channel
from models.workers.image_transfer import RemoteBatcher
from models.workers.messages import (
    Answers,
    Reply,
    RpcClient,
    ServedVersion,
    ServingState,
    StateApplied,
)
from models.workers.shared_slots import SharedSlots

_log = logging.getLogger(__name__)

# Interval at which replaced versions are looked at until they are idle.
_POLL_S = 0.1
_DISCONNECTED = "the engine process has ended, or has dropped this HTTP worker"


@dataclass(frozen=True, slots=True)
class _Model:
    served: ServedVersion
    pipeline: Pipeline
    admission: Admission
    batcher: RemoteBatcher

    @property
    def card(self) -> ModelCard:
        return self.served.card

    @property
    def idle(self) -> bool:
        """Whether no image is in flight. A cancelled one counts until its decode and its forward have ended."""
        return self.batcher.idle and not self.pipeline.decoding and not self.admission.in_flight


class WorkerRuntime(Runtime):
    """The runtime of worker `number`, whose end of the socket to the engine process is `end`. It owns `decode_pool`,
    and uses the deadlines of `options`.

    The constructor blocks until it is known what is served; after that the object belongs to the running event loop.
    `give_up` gets the reason why this process should end."""

    def __init__(
        self,
        number: int,
        end: socket.socket,
        options: ServingOptions,
        decode_pool: DecodePool,
        telemetry: Telemetry,
        give_up: Callable[[str], None],
    ) -> None:
        memory.retain_freed_pages()
        self._worker = number
        self._options = options
        self._telemetry = telemetry
        self._give_up = give_up
        self._decode_pool = decode_pool
        self._state = ServingState(-1, (), frozenset(), ready=False, draining=False)
        self._models: Mapping[str, _Model] = MappingProxyType({})
        self._draining = False
        self._disconnected = False
        # All versions by number: those of `_models`, and replaced ones until they are idle.
        self._versions: dict[int, _Model] = {}
        self._loop = asyncio.get_running_loop()
        self._channel = Channel(end, self._on_message, self._on_end)
        self._rpc = RpcClient(self._channel.send)
        while self._state.number < 0:
            if self._disconnected:
                raise EOFError(_DISCONNECTED)
            self._channel.wait()
        self._supervisor = Supervisor(dict, lambda _name: None, give_up, fatal_problem=self._stuck_decode)

    @property
    def cards(self) -> Mapping[str, ModelCard]:
        return MappingProxyType({name: model.card for name, model in self._models.items()})

    @property
    def ready(self) -> bool:
        """Whether the engine process is ready, and this worker neither drains nor is stuck."""
        return self._state.ready and not (self._draining or self._disconnected or self._stuck_decode())

    @property
    def draining(self) -> bool:
        return self._draining

    @property
    def down(self) -> frozenset[str]:
        return self._state.down

    @property
    def half_full(self) -> bool:
        return any(model.admission.half_full for model in self._models.values())

    def refusal(self, model: str, task: Task) -> AtCapacityError | None:
        found = self._models.get(model)
        return None if found is None or model in self._state.down else found.pipeline.refusal(task)

    async def predict(self, model: str | None, request: InferenceRequest) -> Answer:
        found = find_model(self._models, self._state.down, model)
        return await answer(found.card, found.pipeline, request)

    async def compare(
        self,
        model: str | None,
        options: ComparisonOptions,
        image: bytes | None = None,
        on_progress: Callable[[Progress], None] = lambda _: None,
    ) -> Comparison:
        comparison: Comparison = await self._rpc.call("compare", model, options, image, on_progress=on_progress)
        return comparison

    async def load(self, name: str, source: str | None = None) -> Loaded:
        loaded: Loaded = await self._rpc.call("load", name, source)
        return loaded

    async def unload(self, name: str) -> None:
        await self._rpc.call("unload", name)

    def exposition(self, accept: str, max_age_s: float, timeout_s: float) -> str:
        """Return the service's metrics from the engine process, in the format that `accept` asks for. They may be
        `max_age_s` seconds old. Blocks, so not for the event loop. Raises TimeoutError."""
        call = asyncio.run_coroutine_threadsafe(self._rpc.call("exposition", accept, max_age_s), self._loop)
        exposition: str = call.result(timeout_s)
        return exposition

    # The engine process reports these for the whole service.

    def admissions(self) -> Mapping[str, AdmissionState]:
        return {}

    def instances(self) -> Mapping[InstanceId, InstanceState]:
        return {}

    def devices(self) -> Mapping[str, DeviceState]:
        return {}

    def drain(self) -> None:
        self._draining = True
        for model in self._models.values():
            model.admission.close()

    def close(self, timeout_s: float) -> bool:
        self.drain()
        self._supervisor.stop()
        decoded = self._decode_pool.close(timeout_s)
        self._loop.call_soon_threadsafe(self._channel.close)
        return decoded

    def _stuck_decode(self) -> str | None:
        return self._decode_pool.stuck(self._options.longest_decode_s)

    def _on_message(self, message: object, descriptors: list[int]) -> None:
        match message:
            case Answers():
                self._on_answers(message)
            case ServingState():
                self._apply(message, descriptors)
            case Reply():
                self._rpc.on_reply(message)

    def _apply(self, state: ServingState, descriptors: list[int]) -> None:
        """Serve by a new state. This is one step of the event loop, so a request sees the old state or the new one."""
        before = self._models
        self._models = MappingProxyType(
            {
                served.name: self._versions.get(served.version) or self._add(served, descriptors)
                for served in state.models
            }
        )
        self._state = state
        if state.draining:
            self.drain()
        for name in before.keys() - self._models.keys():
            self._telemetry.model_gone(name)
        self._remove_versions()
        self._channel.send(StateApplied(state.number))

    def _add(self, served: ServedVersion, descriptors: list[int]) -> _Model:
        if not descriptors:
            # The kernel drops descriptors that would exceed the limit of open files.
            raise OSError(f"the slots of {served.name} did not arrive; this process may have too many open files")
        descriptor = descriptors.pop(0)
        slots = SharedSlots(descriptor, served.shape)
        os.close(descriptor)
        batcher = RemoteBatcher(
            served.version, slots, self._worker, self._channel.send, partial(self._drop_answer, served.version)
        )
        admission = Admission(
            served.capacity,
            batcher.expected_seconds,
            admitted_elsewhere=lambda: slots.in_flight(without=self._worker),
            on_change=partial(slots.set_in_flight, self._worker),
        )
        if self._draining:
            admission.close()
        pipeline = Pipeline(
            served,
            batcher,
            self._decode_pool,
            admission,
            deadline_s=self._options.deadline_s,
            telemetry=self._telemetry,
        )
        self._telemetry.model_shown(served.name, served.card.devices)
        model = self._versions[served.version] = _Model(served, pipeline, admission, batcher)
        return model

    def _remove_versions(self) -> None:
        """Remove replaced versions once they are idle."""
        current = {model.served.version for model in self._models.values()}
        for version, model in list(self._versions.items()):
            if version not in current and model.idle:
                del self._versions[version]
        if len(self._versions) > len(current):
            self._loop.call_later(_POLL_S, self._remove_versions)

    def _on_answers(self, message: Answers) -> None:
        model = self._versions.get(message.version)
        if model is not None:
            model.batcher.on_answers(message)
        else:
            for slot, generation, _ in message.results:
                self._drop_answer(message.version, slot, generation)

    def _drop_answer(self, version: int, slot: int, generation: int) -> None:
        image = f"version {version}, slot {slot}, generation {generation}"
        _log.warning("HTTP worker %d dropped a stale answer: %s", self._worker, image)
        self._telemetry.message_dropped("answer")

    def _on_end(self, error: Exception | None) -> None:
        """No image is answered from here on. Fail all that wait, and have another worker take this one's place. The
        engine process sees the socket close, and waits for this worker no more."""
        self._disconnected = True
        for model in self._versions.values():
            model.batcher.abandon(partial(ModelDownError, model.card.name))
        self._rpc.close()
        if not self._draining:
            failed = f"a message of the engine process cannot be processed: {type(error).__name__}: {error}"
            self._give_up(_DISCONNECTED if error is None else failed)
