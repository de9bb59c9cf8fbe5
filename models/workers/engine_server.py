"""The engine process's side of all HTTP workers: it announces what is served, and runs their calls."""

from __future__ import annotations

import asyncio
import itertools
import os
import socket
from collections.abc import Callable, Container, Coroutine
from dataclasses import dataclass, field, replace
from typing import Any

from models.inference.image_job import LocalQueue
from models.interface.admission import Admission
from models.interface.results import Loaded
from models.interface.shared_work import SharedWork
from models.interface.telemetry import BatchReport, Telemetry
from models.loading.load import LoadedModel
from models.serving.model_instance import ServingOptions
from models.serving.runtime import LocalRuntime
from models.serving.served_model import ServedModel
from models.workers.channel import Channel, socket_pair
from models.workers.image_transfer import ImageReceiver, Version
from models.workers.messages import Answers, Call, Method, RpcServer, ServedVersion, ServingState, StateApplied
from models.workers.shared_slots import SharedSlots, SlotShape

# Interval at which `run` looks for changes of what is served, and for versions that can be removed.
_POLL_S = 0.02
# Slots of a worker for each image that the service admits. A cancelled image keeps its slot until it reaches the head
# of the queue, so more slots are needed than images are admitted.
_SLOTS_PER_IMAGE = 2


class SharedAdmission(Admission):
    """The admission of a model in the engine process. HTTP workers admit the images; here they are only counted."""

    def __init__(
        self, version: Version, capacity: int, wait_until_empty: Callable[[Version], Coroutine[Any, Any, None]]
    ) -> None:
        super().__init__(capacity, version.queue.expected_seconds, admitted_elsewhere=version.slots.in_flight)
        self.version = version
        self._wait = wait_until_empty

    @property
    def in_flight(self) -> int:
        return self.version.slots.in_flight()

    async def wait_until_empty(self) -> None:
        self.close()
        await self._wait(self.version)


@dataclass(slots=True)
class _Worker:
    channel: Channel
    rpc: RpcServer
    # Versions whose slots it has been sent.
    known: set[int] = field(default_factory=set)
    # Number of the last state that it has applied.
    applied: int = -1


class EngineServer:
    """Serves at most `workers` worker numbers at once. It loads its models on construction, without an event loop; all
    else happens on one.

    `exposition` returns the service's metrics, from any thread. `on_lost` gets the number of a worker whose connection
    has ended. `on_fault` gets, from any thread, an error after which workers may not get their answers. Raises
    StartError as LocalRuntime does."""

    def __init__(
        self,
        options: ServingOptions,
        workers: int,
        telemetry: Telemetry,
        exposition: Callable[[str], str],
        *,
        give_up: Callable[[str], None],
        on_lost: Callable[[int], None],
        on_fault: Callable[[Exception], None],
    ) -> None:
        self._max_workers = workers
        self._options = options
        self._on_lost = on_lost
        self._on_fault = on_fault
        self._version_numbers = itertools.count()
        self._exposition = exposition
        self._expositions: SharedWork[str, str] = SharedWork()
        self._ever_served: set[int] = set()
        self._workers: dict[int, _Worker] = {}
        self._state = ServingState(0, (), frozenset(), ready=False, draining=False)
        # Set when conditions that are waited for may have changed.
        self._changed = asyncio.Event()
        self._images = ImageReceiver(self._send, telemetry.message_dropped)
        self.runtime = LocalRuntime(options, telemetry, give_up, self)

    @property
    def queue_capacity(self) -> int:
        """As RemoteAdmission.queue_capacity: one for each slot."""
        return self._max_workers * _SLOTS_PER_IMAGE * self._options.queue_capacity

    def admission(self, model: LoadedModel, queue: LocalQueue) -> SharedAdmission:
        """As RemoteAdmission.admission."""
        network = model.network
        shape = SlotShape(
            workers=self._max_workers,
            each=_SLOTS_PER_IMAGE * self._options.queue_capacity,
            side=model.transform.crop,
            dimensions=network.dimensions,
            classes=network.classes,
        )
        descriptor = SharedSlots.create(shape)
        version = Version(next(self._version_numbers), model.name, descriptor, SharedSlots(descriptor, shape), queue)
        self._images.add_version(version)
        return SharedAdmission(version, self._options.queue_capacity, self._wait_until_empty)

    def forget(self, admission: Admission) -> None:
        """As RemoteAdmission.forget: its slots are freed like those of a version that is no longer served."""
        if isinstance(admission, SharedAdmission):
            self._ever_served.add(admission.version.number)

    def batch_over(self, report: BatchReport) -> None:
        """As RemoteAdmission.batch_over."""
        try:
            self._images.batch_over(report)
        except Exception as error:  # noqa: BLE001 - any error: the batcher, which calls this, would carry on
            self._on_fault(error)

    def free_number(self, alive: Container[int] = ()) -> int | None:
        """Return an unused worker number, none of whose slots is in use; None if there is none.

        `alive` has the numbers of workers whose process is alive. Such a process may still write into its slots, though
        its connection is lost."""
        numbers = range(self._max_workers)
        return next((n for n in numbers if not (n in alive or n in self._workers or self._images.in_flight(n))), None)

    def add(self, number: int) -> socket.socket:
        """Serve a worker from now on. Return its end of the socket."""
        self._announce()
        end, worker_end = socket_pair()
        channel = Channel(end, lambda message, _: self._on_message(number, message), lambda _: self._lose(number))
        self._workers[number] = worker = _Worker(channel, RpcServer(channel.send, self._methods()))
        self._announce_to(worker)
        return worker_end

    def process_ended(self, number: int) -> None:
        """The process of a worker has ended. It may have set its count after its connection was lost."""
        for version in list(self._images.versions.values()):
            version.slots.set_in_flight(number, 0)

    async def run(self) -> None:
        """Announce each change of what is served, until cancelled."""
        while True:
            self._announce()
            self._remove_versions()
            self._changed.set()
            await asyncio.sleep(_POLL_S)

    async def close(self, timeout_s: float) -> bool:
        """End models and threads, after the workers have ended. Return False if a forward or a load was still running
        after `timeout_s`."""
        ended = await asyncio.to_thread(self.runtime.close, timeout_s)
        for worker in self._workers.values():
            worker.channel.close()
        for version in self._images.versions.values():
            os.close(version.descriptor)
        return ended

    def _announce(self) -> None:
        runtime = self.runtime
        state = ServingState(
            self._state.number,
            tuple(map(_served_version, runtime.models.values())),
            runtime.down,
            runtime.ready,
            runtime.draining,
        )
        if state != self._state:
            self._state = replace(state, number=state.number + 1)
            self._ever_served.update(each.version for each in state.models)
            for worker in self._workers.values():
                self._announce_to(worker)

    def _announce_to(self, worker: _Worker) -> None:
        new = [each.version for each in self._state.models if each.version not in worker.known]
        worker.known.update(new)
        worker.channel.send(self._state, [self._images.versions[number].descriptor for number in new])

    def _methods(self) -> dict[Method, Callable[..., Coroutine[Any, Any, Any]]]:
        return {
            "load": self._load,
            "unload": self.runtime.unload,
            "compare": self.runtime.compare,
            "exposition": self._shared_exposition,
        }

    async def _load(self, name: str, source: str | None) -> Loaded:
        loaded = await self.runtime.load(name, source)
        await self._state_applied()
        return loaded

    async def _shared_exposition(self, accept: str, max_age_s: float) -> str:
        async def build() -> str:
            return await asyncio.to_thread(self._exposition, accept)

        return await self._expositions.result(accept, build, max_age_s=max_age_s)

    async def _state_applied(self) -> None:
        """Wait until all workers serve by the current state. A worker that ends meanwhile need not."""
        self._announce()
        number = self._state.number
        await self._until(lambda: all(worker.applied >= number for worker in self._workers.values()))

    async def _wait_until_empty(self, version: Version) -> None:
        await self._state_applied()
        await self._until(lambda: not version.slots.in_flight())

    async def _until(self, holds: Callable[[], bool]) -> None:
        while not holds():
            self._changed.clear()
            await self._changed.wait()

    def _remove_versions(self) -> None:
        """Free the slots of versions that are no longer served and have no image in flight."""
        current = {each.version for each in self._state.models}
        applied = all(worker.applied == self._state.number for worker in self._workers.values())
        for number, version in list(self._images.versions.items()):
            # A version that is still being loaded was never served.
            past = number in self._ever_served and number not in current
            if past and applied and not version.slots.in_flight():
                # Images that still arrive for it fail.
                del self._images.versions[number]
                os.close(version.descriptor)

    def _send(self, number: int, answers: Answers) -> None:
        """Send to a worker, unless it is lost. From any thread."""
        worker = self._workers.get(number)
        if worker is not None:
            worker.channel.send(answers)

    def _on_message(self, number: int, message: object) -> None:
        worker = self._workers[number]
        match message:
            case tuple():
                self._images.receive(number, message)
            case StateApplied(state):
                worker.applied = state
                self._changed.set()
            case Call():
                worker.rpc.on_call(message)

    def _lose(self, number: int) -> None:
        """Serve a worker no more: its end is closed, or it has sent a wrong message."""
        worker = self._workers.pop(number)
        worker.channel.close()
        worker.rpc.close()
        self._images.cancel_all(number)
        self._on_lost(number)


def _served_version(served: ServedModel) -> ServedVersion:
    admission, model = served.admission, served.model
    if not isinstance(admission, SharedAdmission):
        raise TypeError(f"{served.card.name} was not loaded for HTTP workers")
    version = admission.version
    shape = version.slots.shape
    return ServedVersion(version.number, served.card, model.transform, model.labels, shape, admission.capacity)
