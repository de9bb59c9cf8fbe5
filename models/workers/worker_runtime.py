"""The runtime of an HTTP worker: it admits and decodes images, and their forwards run in the engine process."""

from __future__ import annotations

import asyncio
import logging
import os
import socket
from collections import deque
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from time import perf_counter
from types import MappingProxyType

from gradless.records import Comparison, ComparisonOptions, Progress
from models.hardware import memory
from models.images.decode_memory import DecodeMemory
from models.images.decode_pool import DecodePool
from models.inference.pipeline import Pipeline, answer
from models.interface.admission import Admission
from models.interface.errors import AtCapacityError, ModelDownError
from models.interface.request import ImageLimits, InferenceRequest
from models.interface.results import Answer, Loaded, ModelCard
from models.interface.runtime import Runtime
from models.interface.telemetry import BatcherState, MemoryKind, QueueState, Task, Telemetry
from models.serving.registry import find_model
from models.serving.supervisor import Supervisor
from models.workers.channel import Channel
from models.workers.messages import Answers, Failure, ServedVersion, ServingState, StateApplied
from models.workers.remote_batcher import RemoteBatcher
from models.workers.rpc import CallDone, CallProgress, RpcClient
from models.workers.shared_slots import SharedSlots

_log = logging.getLogger(__name__)

_DISCONNECTED = "the engine process has ended, or has dropped this HTTP worker"


@dataclass(frozen=True, slots=True)
class EngineConnection:
    """The number of an HTTP worker, and its end of the socket to the engine process."""

    worker: int
    end: socket.socket


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerOptions:
    """The part of ServingOptions that concerns decoding, and the decode memory that all workers share. A decode that
    takes more than `longest_decode_s` is stuck; expensive decodes wait for `longest_decode_wait_s` at most."""

    decode_threads: int
    decode_memory: DecodeMemory
    limits: ImageLimits
    deadline_s: float
    longest_decode_wait_s: float
    longest_decode_s: float


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
    """The constructor blocks until it is known what is served; after that the object belongs to the
    running event loop. `give_up` gets the reason why this process should end."""

    def __init__(
        self,
        connection: EngineConnection,
        options: WorkerOptions,
        telemetry: Telemetry,
        give_up: Callable[[str], None],
    ) -> None:
        memory.retain_freed_pages()
        self._worker = connection.worker
        self._options = options
        self._telemetry = telemetry
        self._give_up = give_up
        self._decode_pool = DecodePool(
            options.decode_threads,
            options.limits,
            longest_wait_s=options.longest_decode_wait_s,
            memory=options.decode_memory,
        )
        self._models: Mapping[str, _Model] = MappingProxyType({})
        self._down: frozenset[str] = frozenset()
        self._engine_ready = False
        self._draining = False
        self._disconnected = False
        self._state_number = -1
        # All versions by number: those of `_models`, and replaced ones until they are idle.
        self._versions: dict[int, _Model] = {}
        self._loop = asyncio.get_running_loop()
        self._channel = Channel(connection.end, self._on_message, self._on_end)
        self._rpc = RpcClient(self._channel.send)
        while self._state_number < 0:
            if self._disconnected:
                raise EOFError(_DISCONNECTED)
            self._channel.wait()
        self._supervisor = Supervisor(
            dict,
            lambda _name: None,
            give_up,
            fatal_problem=lambda: self._decode_pool.stuck(options.longest_decode_s),
        )

    @property
    def cards(self) -> Mapping[str, ModelCard]:
        """The served models by name, the default first."""
        return MappingProxyType({name: model.card for name, model in self._models.items()})

    @property
    def ready(self) -> bool:
        """Whether the engine process is ready, and this worker neither drains nor is stuck."""
        stuck = self._decode_pool.stuck(self._options.longest_decode_s)
        return self._engine_ready and not (self._draining or self._disconnected or stuck)

    @property
    def draining(self) -> bool:
        """Whether new requests are refused."""
        return self._draining

    @property
    def full(self) -> bool:
        """Whether some model can admit no image."""
        return any(model.admission.full for model in self._models.values())

    def refusal(self, model: str, task: Task) -> AtCapacityError | None:
        """As LocalRuntime.refusal."""
        found = self._models.get(model)
        return None if found is None or model in self._down else found.pipeline.refusal(task)

    async def predict(self, model: str | None, request: InferenceRequest) -> Answer:
        """As LocalRuntime.predict."""
        found = find_model(self._models, self._down, model)
        return await answer(found.card, found.pipeline, request)

    async def compare(
        self,
        model: str | None,
        options: ComparisonOptions,
        image: bytes | None = None,
        on_progress: Callable[[Progress], None] = lambda _: None,
    ) -> Comparison:
        """As LocalRuntime.compare, in the engine process."""
        comparison: Comparison = await self._rpc.call("compare", model, options, image, on_progress=on_progress)
        return comparison

    async def load(self, name: str, source: str | None = None) -> Loaded:
        """As LocalRuntime.load. All workers serve the model when this returns."""
        loaded: Loaded = await self._rpc.call("load", name, source)
        return loaded

    async def unload(self, name: str) -> None:
        """As LocalRuntime.unload. No worker serves the model when this returns."""
        await self._rpc.call("unload", name)

    def exposition(self, accept: str, max_age_s: float, timeout_s: float) -> str:
        """Return the service's metrics from the engine process, in the format that `accept` asks for. They may be
        `max_age_s` seconds old. Blocks, so not for the event loop. Raises TimeoutError."""
        call = asyncio.run_coroutine_threadsafe(self._rpc.call("exposition", accept, max_age_s), self._loop)
        exposition: str = call.result(timeout_s)
        return exposition

    # The engine process reports these for the whole service.

    def queues(self) -> Mapping[str, QueueState]:
        return {}

    def batchers(self) -> Mapping[str, BatcherState]:
        return {}

    def memory_bytes(self) -> Mapping[MemoryKind, int]:
        return {}

    def utilization(self) -> float | None:
        return None

    def drain(self) -> None:
        """Refuse new requests, and answer those that were accepted. Safe to call from a signal handler."""
        self._draining = True
        for model in self._models.values():
            model.admission.close()

    def close(self, timeout_s: float) -> bool:
        """Drain and end all threads. Not for the event loop's thread. Return False if a decode was still running after
        `timeout_s`."""
        until = perf_counter() + timeout_s
        self.drain()
        self._supervisor.stop()
        decoded = self._decode_pool.close(timeout_s)
        closed: Future[None] = Future()

        def close_channel() -> None:
            self._channel.close()
            closed.set_result(None)

        self._loop.call_soon_threadsafe(close_channel)
        closed.result(max(1.0, until - perf_counter()))
        return decoded

    def _on_message(self, message: object, descriptors: deque[int]) -> None:
        match message:
            case Answers() | Failure():
                self._on_answer(message)
            case ServingState():
                self._apply(message, descriptors)
            case CallProgress() | CallDone():
                self._rpc.on_message(message)

    def _apply(self, state: ServingState, descriptors: deque[int]) -> None:
        """Serve by a new state. This is one step of the event loop, so a request sees the old state or the new one."""
        before = self._models
        self._models = MappingProxyType(
            {
                served.card.name: self._versions.get(served.version) or self._add(served, descriptors)
                for served in state.models
            }
        )
        self._down, self._engine_ready, self._state_number = state.down, state.ready, state.number
        if state.draining:
            self.drain()
        for name in before.keys() - self._models.keys():
            self._telemetry.model_gone(name)
        self._remove_versions()
        self._channel.send(StateApplied(state.number))

    def _add(self, served: ServedVersion, descriptors: deque[int]) -> _Model:
        facts = served.facts
        if not descriptors:
            # The kernel drops descriptors that would exceed the limit of open files.
            raise OSError(f"the slots of {facts.name} did not arrive; this process may have too many open files")
        descriptor = descriptors.popleft()
        slots = SharedSlots(descriptor, served.shape)
        os.close(descriptor)
        batcher = RemoteBatcher(
            served.version, slots, self._worker, self._channel.send, partial(self._drop_answer, served.version)
        )
        admission = Admission(
            served.capacity,
            batcher.expected_seconds,
            admitted_elsewhere=lambda: slots.in_flight(without=self._worker),
            on_change=partial(self._publish_in_flight, slots),
        )
        if self._draining:
            admission.close()
        pipeline = Pipeline(
            facts,
            batcher,
            self._decode_pool,
            admission,
            deadline_s=self._options.deadline_s,
            telemetry=self._telemetry,
            on_decodes_ended=self._on_decodes_ended,
        )
        self._telemetry.model_shown(facts.name)
        model = self._versions[served.version] = _Model(served, pipeline, admission, batcher)
        return model

    def _publish_in_flight(self, slots: SharedSlots, images: int) -> None:
        slots.set_in_flight(self._worker, images)
        if not images:
            self._remove_versions()

    def _remove_versions(self) -> None:
        """Remove replaced versions that are idle."""
        if len(self._versions) == len(self._models):
            return
        current = {model.served.version for model in self._models.values()}
        for version, model in list(self._versions.items()):
            if version not in current and model.idle:
                del self._versions[version]

    def _on_decodes_ended(self) -> None:
        """From a decode thread. Only a replaced version waits for this."""
        if len(self._versions) != len(self._models):
            with suppress(RuntimeError):
                self._loop.call_soon_threadsafe(self._remove_versions)

    def _on_answer(self, message: Answers | Failure) -> None:
        model = self._versions.get(message.version)
        if isinstance(message, Answers):
            if model is not None:
                model.batcher.on_answers(message)
            else:
                for slot, _, generation, _, _ in message.answers:
                    self._drop_answer(message.version, slot, generation)
        elif model is not None:
            model.batcher.on_failure(message)
        else:
            self._drop_answer(message.version, message.slot, message.generation)
        self._remove_versions()

    def _drop_answer(self, version: int, slot: int, generation: int) -> None:
        _log.warning(
            "HTTP worker %d dropped a stale answer: version %d, slot %d, generation %d",
            self._worker,
            version,
            slot,
            generation,
        )
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
