"""The engine process's side: who its workers are, what they are told of what is served, and what they have done for all
of them."""

from __future__ import annotations

import asyncio
import itertools
import os
import socket
from collections.abc import Callable, Container, Coroutine
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

from models.inference.batch_item import BatchItem, ItemOutput
from models.interface.shared_work import SharedWork
from models.interface.telemetry import BatchReport, Telemetry
from models.loading.load import LoadedModel
from models.scheduling.admission import Admission
from models.scheduling.batcher import Batcher
from models.serving.model_instance import ModelInstance, ServingOptions
from models.serving.runtime import LocalRuntime
from models.workers.channel import Channel
from models.workers.image_receiver import ImageReceiver, Version
from models.workers.messages import Announced, Ask, Facts, LeaveIt, State, Taken
from models.workers.rpc_server import RpcServer
from models.workers.shared_slots import SharedSlots, SlotShape

# How often it is looked whether what is served has changed, and whether what has gone is empty.
_LOOK_S = 0.02
# For a worker, more slots than the service has places: those of callers who have left are free again when their images
# come to the head of the queue.
_SLOTS_TO_PLACES = 2


class SharedAdmission(Admission):
    """The places of a model, which its workers give away: here it is seen how many are taken, and waited until none
    is."""

    def __init__(
        self,
        version: Version,
        capacity: int,
        facts: Facts,
        nobody_inside: Callable[[Version], Coroutine[Any, Any, None]],
    ) -> None:
        super().__init__(capacity, version.batcher.expected_seconds, admitted_elsewhere=version.slots.inside)
        self.version = version
        self.facts = facts
        self._nobody_inside = nobody_inside

    @property
    def in_flight(self) -> int:
        return self.version.slots.inside()

    async def wait_until_empty(self) -> None:
        self.close()
        await self._nobody_inside(self.version)


@dataclass(slots=True)
class _Worker:
    images: socket.socket
    channel: Channel
    answering: RpcServer
    known: set[int] = field(default_factory=set)
    taken: int = -1


class EngineServer:
    """Made, with its models loaded, before there is an event loop; all else belongs to one. `workers` worker numbers
    may be in use at once. `exposition` gives the service's metrics, from any thread. `on_lost` is told of a worker
    that has gone, `on_fault`, from any thread, of an error after which workers are not answered as they should be.
    Raises StartError as LocalRuntime does."""

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
        self._workers_at_once = workers
        self._options = options
        self._on_lost = on_lost
        self._on_fault = on_fault
        self._versions = itertools.count()
        self._exposition = exposition
        self._expositions: SharedWork[str, str] = SharedWork()
        self._open: dict[int, Version] = {}
        self._ever_served: set[int] = set()
        self._workers: dict[int, _Worker] = {}
        self._state = State(0, (), frozenset(), ready=False, draining=False)
        self._loop: asyncio.AbstractEventLoop | None = None
        # Set when it is time to look again whether what is waited for has come.
        self._moved = asyncio.Event()
        self._desk = ImageReceiver(self._lost, lambda reason: on_fault(RuntimeError(reason)), telemetry.message_dropped)
        try:
            self.serving = LocalRuntime(options, telemetry, give_up, self)
        except BaseException:
            self._desk.close()
            raise

    @property
    def queue_capacity(self) -> int:
        """As RemoteAdmission.queue_capacity: one for each slot. Workers admit no more than there are places."""
        return self._workers_at_once * _SLOTS_TO_PLACES * self._options.queue_capacity

    def admission(self, model: LoadedModel, batcher: Batcher[BatchItem, ItemOutput]) -> SharedAdmission:
        """As RemoteAdmission.admission."""
        network = model.network
        shape = SlotShape(
            workers=self._workers_at_once,
            each=_SLOTS_TO_PLACES * self._options.queue_capacity,
            side=model.transform.crop,
            dimensions=network.dimensions,
            classes=network.classes,
        )
        descriptor = SharedSlots.create(shape)
        version = Version(next(self._versions), model.name, descriptor, SharedSlots(descriptor, shape), batcher)
        self._open[version.number] = version
        self._desk.open_for(version)
        facts = Facts(model.name, model.transform, model.labels)
        return SharedAdmission(version, self._options.queue_capacity, facts, self._nobody_inside)

    def forget(self, admission: Admission) -> None:
        """As RemoteAdmission.forget: its memory is given back as that of a model that is served no more."""
        if isinstance(admission, SharedAdmission):
            self._ever_served.add(admission.version.number)

    def batch_over(self, report: BatchReport) -> None:
        """As RemoteAdmission.batch_over."""
        try:
            self._desk.batch_over(report)
        except Exception as error:  # noqa: BLE001 - whatever it was: the batcher, which called this, would go on
            self._on_fault(error)

    def free_number(self, alive: Container[int] = ()) -> int | None:
        """A number for another worker, of whose slots none is in use; None while there is none. `alive`: numbers of
        workers whose processes run, and may still write into their slots, though this has lost them."""
        taken = (
            number in alive or number in self._workers or self._desk.busy_with(number)
            for number in range(self._workers_at_once)
        )
        return next((number for number, is_taken in enumerate(taken) if not is_taken), None)

    def add(self, number: int, images: socket.socket, channel: socket.socket) -> None:
        """Serve a worker from now on, over these ends of its two sockets, which are the house's from here."""
        self._announce()
        self._desk.add(number, images)
        its_channel = Channel(
            channel, lambda message, _: self._hear(number, message), lambda _: self._worker_gone(number, images)
        )
        answering = RpcServer(its_channel, self.serving, self._shared_exposition, self._agreed)
        self._workers[number] = worker = _Worker(images, its_channel, answering)
        self._announce_to(worker)

    def process_ended(self, number: int) -> None:
        """The process of a worker has ended. One that was lost before may have said since how many images it has."""
        for version in self._open.values():
            version.slots.count(number, 0)

    async def look_after(self) -> None:
        """Announce what is served whenever that changes, for as long as this is not cancelled."""
        self._loop = asyncio.get_running_loop()
        while True:
            self._announce()
            self._forget_versions()
            self._moved.set()
            await asyncio.sleep(_LOOK_S)

    async def greeted(self, workers: int) -> None:
        """Until so many workers know what is served."""
        await self._until(lambda: sum(worker.taken >= 0 for worker in self._workers.values()) >= workers)

    async def close(self, timeout_s: float) -> bool:
        """End models and threads, after the workers have gone. False if a forward or a load was still running after
        `timeout_s`."""
        ended = await asyncio.to_thread(self.serving.close, timeout_s)
        await asyncio.to_thread(self._desk.close)
        for worker in self._workers.values():
            worker.channel.close()
        for version in self._open.values():
            os.close(version.descriptor)
        return ended

    def _announce(self) -> None:
        serving = self.serving
        state = State(
            self._state.number,
            tuple(map(_announced, serving.instances.values())),
            serving.down,
            serving.ready,
            serving.draining,
        )
        if state != self._state:
            self._state = replace(state, number=state.number + 1)
            self._ever_served.update(each.version for each in state.models)
            for worker in self._workers.values():
                self._announce_to(worker)

    def _announce_to(self, worker: _Worker) -> None:
        new = [each.version for each in self._state.models if each.version not in worker.known]
        worker.known.update(new)
        worker.channel.send(self._state, [self._open[number].descriptor for number in new])

    async def _shared_exposition(self, accept: str, max_age_s: float) -> str:
        async def build() -> str:
            return await asyncio.to_thread(self._exposition, accept)

        return await self._expositions.result(accept, build, max_age_s=max_age_s)

    async def _agreed(self) -> None:
        """Until every worker goes by what is served now."""
        self._announce()
        number = self._state.number
        # A worker that goes meanwhile need not agree.
        await self._until(lambda: all(worker.taken >= number for worker in self._workers.values()))

    async def _nobody_inside(self, version: Version) -> None:
        await self._agreed()
        await self._until(lambda: not version.slots.inside())

    async def _until(self, holds: Callable[[], bool]) -> None:
        while not holds():
            self._moved.clear()
            await self._moved.wait()

    def _forget_versions(self) -> None:
        """Give back the memory of those that are served no more and have nobody inside."""
        current = {each.version for each in self._state.models}
        agreed = all(worker.taken == self._state.number for worker in self._workers.values())
        for number, version in list(self._open.items()):
            # What is being loaded has not been served yet.
            past = number in self._ever_served and number not in current
            if past and agreed and not version.slots.inside():
                del self._open[number]
                self._desk.close_for(version)
                os.close(version.descriptor)

    def _hear(self, number: int, message: object) -> None:
        worker = self._workers[number]
        match message:
            case Taken(state):
                worker.taken = state
                self._moved.set()
            case Ask() | LeaveIt():
                worker.answering.hear(message)

    def _lost(self, number: int, images: socket.socket) -> None:
        """The desk has lost a worker: its thread says so."""
        if self._loop is not None:
            self._loop.call_soon_threadsafe(partial(self._worker_gone, number, images))

    def _worker_gone(self, number: int, images: socket.socket) -> None:
        worker = self._workers.get(number)
        # Heard from both sockets, the second time perhaps when another worker has the number.
        if worker is None or worker.images is not images:
            return
        del self._workers[number]
        worker.channel.close()
        worker.answering.end()
        self._on_lost(number)


def _announced(served: ModelInstance) -> Announced:
    doors = served.admission
    if not isinstance(doors, SharedAdmission):
        raise TypeError(f"{served.card.name} was not loaded for workers")
    version = doors.version
    return Announced(version.number, served.card, doors.facts, version.slots.shape, doors.capacity)
