"""Every model of the service, as one of several processes that read and decode sees it: a runtime whose forwards run
elsewhere."""

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
from models.interface.errors import AtCapacityError, ModelDownError
from models.interface.image_limits import ImageLimits
from models.interface.request import InferenceRequest
from models.interface.results import Answer, Loaded, ModelCard
from models.interface.runtime import Runtime
from models.interface.telemetry import BatcherState, MemoryKind, QueueState, Task, Telemetry
from models.scheduling.admission import Admission
from models.serving.registry import find_model
from models.serving.supervisor import Supervisor
from models.workers.channel import Channel, receive_first
from models.workers.messages import Announced, Heard, Outcome, State, Taken
from models.workers.remote_batcher import RemoteBatcher
from models.workers.rpc_client import RpcClient
from models.workers.shared_slots import SharedSlots
from models.workers.wire_format import Answers, Failure, Frames

_log = logging.getLogger(__name__)

_PIECE = 1 << 18

_LEFT = "the engine process has ended, or has given this process up"


@dataclass(frozen=True, slots=True)
class Place:
    """Where a worker stands: its number, and its ends of the two sockets to the engine process, one for images and one
    for everything else."""

    worker: int
    images: socket.socket
    channel: socket.socket


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerOptions:
    """What ServingOptions say to those who decode, and the memory that they share for it. A decode of more than
    `longest_decode_s` hangs."""

    decode_threads: int
    decode_memory: DecodeMemory
    limits: ImageLimits
    deadline_s: float
    longest_decode_s: float


@dataclass(frozen=True, slots=True)
class _Served:
    announced: Announced
    pipeline: Pipeline
    admission: Admission
    batcher: RemoteBatcher

    @property
    def card(self) -> ModelCard:
        return self.announced.card

    @property
    def idle(self) -> bool:
        """Whether no image is inside, and none can come: one that nobody waits for may be with the engine process, and
        one that is being decoded will be."""
        return self.batcher.idle and not self.pipeline.decoding and not self.admission.in_flight


class WorkerRuntime(Runtime):
    """Waits on construction until it knows what is served; after that it belongs to the event loop that runs, as
    LocalRuntime's coroutines do, whose protocol it has. `give_up` is told why this process should end."""

    def __init__(
        self,
        place: Place,
        options: WorkerOptions,
        telemetry: Telemetry,
        give_up: Callable[[str], None],
    ) -> None:
        memory.retain_freed_pages()
        self._place = place
        self._options = options
        self._telemetry = telemetry
        self._give_up = give_up
        self._decode_pool = DecodePool(
            options.decode_threads,
            options.limits,
            longest_wait_s=options.deadline_s / 2,
            memory=options.decode_memory,
        )
        self._served: Mapping[str, _Served] = MappingProxyType({})
        self._down: frozenset[str] = frozenset()
        self._engine_ready = False
        self._draining = False
        self._gone = False
        # Also those that others have taken the place of, until nobody is inside for them.
        self._versions: dict[int, _Served] = {}
        self._frames = Frames()
        self._loop = asyncio.get_running_loop()
        place.images.setblocking(True)
        state, descriptors = receive_first(place.channel)
        self._channel = Channel(place.channel, self._hear, self._channel_ended)
        self._asking = RpcClient(self._channel.send)
        self._take(state, deque(descriptors))
        self._loop.add_reader(place.images, self._receive)
        self._supervisor = Supervisor(
            dict,
            lambda _name: None,
            give_up,
            fatal_problem=lambda: self._decode_pool.stuck(options.longest_decode_s),
        )

    @property
    def cards(self) -> Mapping[str, ModelCard]:
        """The served models by name, the default first."""
        return MappingProxyType({name: served.card for name, served in self._served.items()})

    @property
    def ready(self) -> bool:
        """The engine process says so, and nobody drains."""
        stuck = self._decode_pool.stuck(self._options.longest_decode_s)
        return self._engine_ready and not (self._draining or self._gone or stuck)

    @property
    def draining(self) -> bool:
        """Whether nothing new is taken any more."""
        return self._draining

    @property
    def full(self) -> bool:
        """Whether some model has no place for an image."""
        return any(served.admission.full for served in self._served.values())

    def refusal(self, model: str, task: Task) -> AtCapacityError | None:
        """As LocalRuntime.refusal."""
        served = self._served.get(model)
        return None if served is None or model in self._down else served.pipeline.refusal(task)

    async def predict(self, model: str | None, request: InferenceRequest) -> Answer:
        """As LocalRuntime.predict."""
        served = find_model(self._served, self._down, model)
        return await answer(served.card, served.pipeline, request)

    async def compare(
        self,
        model: str | None,
        options: ComparisonOptions,
        image: bytes | None = None,
        on_progress: Callable[[Progress], None] = lambda _: None,
    ) -> Comparison:
        """As LocalRuntime.compare, in the engine process."""
        comparison: Comparison = await self._asking.ask("compare", model, options, image, on_progress=on_progress)
        return comparison

    async def load(self, name: str, source: str | None = None) -> Loaded:
        """As LocalRuntime.load; every worker serves it when this returns."""
        loaded: Loaded = await self._asking.ask("load", name, source)
        return loaded

    async def unload(self, name: str) -> None:
        """As LocalRuntime.unload; no worker serves it when this returns."""
        await self._asking.ask("unload", name)

    def exposition(self, accept: str, max_age_s: float, timeout_s: float) -> str:
        """The metrics of the service, which the engine process has, in the format that `accept` asks for: those of now,
        or those that another worker got at most `max_age_s` seconds ago. Blocks, and is not for the event loop. Raises
        TimeoutError."""
        asking = asyncio.run_coroutine_threadsafe(self._asking.ask("exposition", accept, max_age_s), self._loop)
        found: str = asking.result(timeout_s)
        return found

    # What the engine process alone knows is not told by each worker as well.

    def queues(self) -> Mapping[str, QueueState]:
        return {}

    def batchers(self) -> Mapping[str, BatcherState]:
        return {}

    def memory_bytes(self) -> Mapping[MemoryKind, int]:
        return {}

    def utilization(self) -> float | None:
        return None

    def drain(self) -> None:
        """Take nothing new from now on; what was accepted is answered. Safe to call from a signal handler."""
        self._draining = True
        for served in self._served.values():
            served.admission.close()

    def close(self, timeout_s: float) -> bool:
        """Drain, and end every thread, from one that is not the event loop's. False if a decode was still running after
        `timeout_s`."""
        until = perf_counter() + timeout_s
        self.drain()
        self._supervisor.stop()
        decoded = self._decode_pool.close(timeout_s)
        closed: Future[None] = Future()

        def leave() -> None:
            self._loop.remove_reader(self._place.images)
            self._place.images.close()
            self._channel.close()
            closed.set_result(None)

        self._loop.call_soon_threadsafe(leave)
        closed.result(max(1.0, until - perf_counter()))
        return decoded

    def _take(self, state: State, descriptors: deque[int]) -> None:
        """Go by what has been announced. In one step: on the event loop nobody stands between two states."""
        before = self._served
        self._served = MappingProxyType(
            {
                each.card.name: self._versions.get(each.version) or self._begin(each, descriptors)
                for each in state.models
            }
        )
        self._down, self._engine_ready = state.down, state.ready
        if state.draining:
            self.drain()
        for name in before.keys() - self._served.keys():
            self._telemetry.model_gone(name)
        self._forget_versions()
        self._channel.send(Taken(state.number))

    def _begin(self, announced: Announced, descriptors: deque[int]) -> _Served:
        worker, facts = self._place.worker, announced.facts
        if not descriptors:
            # The kernel leaves out those for which a process has no number left.
            raise OSError(f"the memory of {facts.name} did not arrive; this process may have too many open files")
        descriptor = descriptors.popleft()
        slots = SharedSlots(descriptor, announced.shape)
        os.close(descriptor)
        batcher = RemoteBatcher(
            announced.version, slots, worker, self._place.images, partial(self._drop_answer, announced.version)
        )
        admission = Admission(
            announced.capacity,
            batcher.expected_seconds,
            admitted_elsewhere=lambda: slots.inside(but=worker),
            on_change=partial(self._tell_inside, slots),
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
            on_decodes_ended=self._decodes_ended,
        )
        self._telemetry.model_shown(facts.name)
        served = self._versions[announced.version] = _Served(announced, pipeline, admission, batcher)
        return served

    def _tell_inside(self, slots: SharedSlots, images: int) -> None:
        slots.count(self._place.worker, images)
        if not images:
            self._forget_versions()

    def _forget_versions(self) -> None:
        """Keep nothing of those that are served no more, once nobody is inside for them."""
        if len(self._versions) == len(self._served):
            return
        current = {served.announced.version for served in self._served.values()}
        for version, served in list(self._versions.items()):
            if version not in current and served.idle:
                del self._versions[version]

    def _decodes_ended(self) -> None:
        """From a thread of the decode pool. Only a version that is served no more waits for this."""
        if len(self._versions) != len(self._served):
            with suppress(RuntimeError):
                self._loop.call_soon_threadsafe(self._forget_versions)

    def _receive(self) -> None:
        try:
            piece = self._place.images.recv(_PIECE)
        except OSError:
            piece = b""
        if not piece:
            self._end(_LEFT)
            return
        try:
            for frame in self._frames.feed(piece):
                self._hand_out(frame)
        except Exception as error:  # noqa: BLE001 - whatever it was: which answers are missing is not known any more
            _log.exception("worker %d cannot read its answers", self._place.worker)
            self._end(f"answers cannot be read: {type(error).__name__}: {error}")
        self._forget_versions()

    def _hand_out(self, frame: Answers | Failure) -> None:
        served = self._versions.get(frame.version)
        match frame:
            case Answers() if served is not None:
                served.batcher.answered(frame)
            case Answers():
                for answered in frame.answers:
                    self._drop_answer(frame.version, answered.slot, answered.generation)
            case Failure(slot=slot, generation=generation, error=error) if served is not None:
                served.batcher.failed(slot, generation, error)
            case Failure(slot=slot, generation=generation):
                self._drop_answer(frame.version, slot, generation)

    def _drop_answer(self, version: int, slot: int, generation: int) -> None:
        _log.warning(
            "worker %d dropped a stale answer: version %d, slot %d, generation %d",
            self._place.worker,
            version,
            slot,
            generation,
        )
        self._telemetry.message_dropped("answer")

    def _hear(self, message: object, descriptors: deque[int]) -> None:
        match message:
            case State():
                self._take(message, descriptors)
            case Heard() | Outcome():
                self._asking.hear(message)

    def _channel_ended(self, error: Exception | None) -> None:
        if error is None:
            self._end(_LEFT)
        else:
            self._end(f"the engine process cannot be followed: {type(error).__name__}: {error}")

    def _end(self, reason: str) -> None:
        """Nobody will be answered from here on: give everybody who waits an error, and give up, so that another worker
        takes this one's place. The engine process, if it is there, hears at once, and waits for this worker no more."""
        if self._gone:
            return
        self._gone = True
        self._loop.remove_reader(self._place.images)
        self._channel.close()
        # Not closed yet: a decode may be about to send.
        with suppress(OSError):
            self._place.images.shutdown(socket.SHUT_RDWR)
        for served in self._versions.values():
            name = served.card.name
            served.batcher.abandon(lambda name=name: ModelDownError(name))  # type: ignore[misc]  # of its own name
        self._asking.end()
        if not self._draining:
            self._give_up(reason)
