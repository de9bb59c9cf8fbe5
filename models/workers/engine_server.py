"""The engine process's side: who its fronts are, what they are told of what is served, and what they have done for all
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

from models.inference.batch_item import Item, Output
from models.interface.shared_work import SharedWork
from models.interface.telemetry import BatchReport, Telemetry
from models.loading.load import LoadedModel
from models.scheduling.admission import Admission
from models.scheduling.batcher import Batcher
from models.serving.model_instance import ServedModel, ServingOptions
from models.serving.runtime import Serving
from models.workers.channel import Channel
from models.workers.image_receiver import Desk, Version
from models.workers.messages import Announced, Ask, Facts, LeaveIt, State, Taken
from models.workers.rpc_server import Answering
from models.workers.shared_slots import Slots, SlotShape

# How often it is looked whether what is served has changed, and whether what has gone is empty.
_LOOK_S = 0.02
# For a front, more slots than the service has places: those of callers who have left are free again when their images
# come to the head of the queue.
_SLOTS_TO_PLACES = 2


class Doors(Admission):
    """The places of a model, which its fronts give away: here it is seen how many are taken, and waited until none
    is."""

    def __init__(
        self,
        version: Version,
        capacity: int,
        facts: Facts,
        nobody_inside: Callable[[Version], Coroutine[Any, Any, None]],
    ) -> None:
        super().__init__(capacity, version.batcher.expected_seconds, elsewhere=version.slots.inside)
        self.version = version
        self.facts = facts
        self._nobody_inside = nobody_inside

    @property
    def in_flight(self) -> int:
        return self.version.slots.inside()

    async def emptied(self) -> None:
        self.close()
        await self._nobody_inside(self.version)


@dataclass(slots=True)
class _Front:
    images: socket.socket
    channel: Channel
    answering: Answering
    known: set[int] = field(default_factory=set)
    taken: int = -1


class House:
    """Made, with its models loaded, before there is an event loop; all else belongs to one. `fronts` front numbers may
    be in use at once. `exposition` gives the service's metrics, from any thread. `on_lost` is told of a front that has
    gone, `on_fault`, from any thread, of an error after which fronts are not answered as they should be. Raises
    StartError as Serving does."""

    def __init__(
        self,
        options: ServingOptions,
        fronts: int,
        telemetry: Telemetry,
        exposition: Callable[[str], str],
        *,
        give_up: Callable[[str], None],
        on_lost: Callable[[int], None],
        on_fault: Callable[[Exception], None],
    ) -> None:
        self._fronts_at_once = fronts
        self._options = options
        self._on_lost = on_lost
        self._on_fault = on_fault
        self._versions = itertools.count()
        self._exposition = exposition
        self._expositions: SharedWork[str, str] = SharedWork()
        self._open: dict[int, Version] = {}
        self._ever_served: set[int] = set()
        self._fronts: dict[int, _Front] = {}
        self._state = State(0, (), frozenset(), ready=False, draining=False)
        self._loop: asyncio.AbstractEventLoop | None = None
        # Set when it is time to look again whether what is waited for has come.
        self._moved = asyncio.Event()
        self._desk = Desk(self._lost, lambda reason: on_fault(RuntimeError(reason)), telemetry.message_dropped)
        try:
            self.serving = Serving(options, telemetry, give_up, self)
        except BaseException:
            self._desk.close()
            raise

    @property
    def queue_capacity(self) -> int:
        """As Reception.queue_capacity: one for each slot. Fronts admit no more than there are places."""
        return self._fronts_at_once * _SLOTS_TO_PLACES * self._options.queue_capacity

    def admission(self, model: LoadedModel, batcher: Batcher[Item, Output]) -> Doors:
        """As Reception.admission."""
        network = model.network
        shape = SlotShape(
            fronts=self._fronts_at_once,
            each=_SLOTS_TO_PLACES * self._options.queue_capacity,
            side=model.transform.crop,
            dimensions=network.dimensions,
            classes=network.classes,
        )
        descriptor = Slots.create(shape)
        version = Version(next(self._versions), model.name, descriptor, Slots(descriptor, shape), batcher)
        self._open[version.number] = version
        self._desk.open_for(version)
        facts = Facts(model.name, model.transform, model.labels)
        return Doors(version, self._options.queue_capacity, facts, self._nobody_inside)

    def forget(self, admission: Admission) -> None:
        """As Reception.forget: its memory is given back as that of a model that is served no more."""
        if isinstance(admission, Doors):
            self._ever_served.add(admission.version.number)

    def batch_over(self, report: BatchReport) -> None:
        """As Reception.batch_over."""
        try:
            self._desk.batch_over(report)
        except Exception as error:  # noqa: BLE001 - whatever it was: the batcher, which called this, would go on
            self._on_fault(error)

    def free_number(self, alive: Container[int] = ()) -> int | None:
        """A number for another front, of whose slots none is in use; None while there is none. `alive`: numbers of
        fronts whose processes run, and may still write into their slots, though this has lost them."""
        taken = (
            number in alive or number in self._fronts or self._desk.busy_with(number)
            for number in range(self._fronts_at_once)
        )
        return next((number for number, is_taken in enumerate(taken) if not is_taken), None)

    def add(self, number: int, images: socket.socket, channel: socket.socket) -> None:
        """Serve a front from now on, over these ends of its two sockets, which are the house's from here."""
        self._announce()
        self._desk.add(number, images)
        its_channel = Channel(
            channel, lambda message, _: self._hear(number, message), lambda _: self._front_gone(number, images)
        )
        answering = Answering(its_channel, self.serving, self._shared_exposition, self._agreed)
        self._fronts[number] = front = _Front(images, its_channel, answering)
        self._announce_to(front)

    def process_ended(self, number: int) -> None:
        """The process of a front has ended. One that was lost before may have said since how many images it has."""
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

    async def greeted(self, fronts: int) -> None:
        """Until so many fronts know what is served."""
        await self._until(lambda: sum(front.taken >= 0 for front in self._fronts.values()) >= fronts)

    async def close(self, timeout_s: float) -> bool:
        """End models and threads, after the fronts have gone. False if a forward or a load was still running after
        `timeout_s`."""
        ended = await asyncio.to_thread(self.serving.close, timeout_s)
        await asyncio.to_thread(self._desk.close)
        for front in self._fronts.values():
            front.channel.close()
        for version in self._open.values():
            os.close(version.descriptor)
        return ended

    def _announce(self) -> None:
        serving = self.serving
        state = State(
            self._state.number,
            tuple(map(_announced, serving.served.values())),
            serving.down,
            serving.ready,
            serving.draining,
        )
        if state != self._state:
            self._state = replace(state, number=state.number + 1)
            self._ever_served.update(each.version for each in state.models)
            for front in self._fronts.values():
                self._announce_to(front)

    def _announce_to(self, front: _Front) -> None:
        new = [each.version for each in self._state.models if each.version not in front.known]
        front.known.update(new)
        front.channel.send(self._state, [self._open[number].descriptor for number in new])

    async def _shared_exposition(self, accept: str, max_age_s: float) -> str:
        async def build() -> str:
            return await asyncio.to_thread(self._exposition, accept)

        return await self._expositions.result(accept, build, max_age_s=max_age_s)

    async def _agreed(self) -> None:
        """Until every front goes by what is served now."""
        self._announce()
        number = self._state.number
        # A front that goes meanwhile need not agree.
        await self._until(lambda: all(front.taken >= number for front in self._fronts.values()))

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
        agreed = all(front.taken == self._state.number for front in self._fronts.values())
        for number, version in list(self._open.items()):
            # What is being loaded has not been served yet.
            past = number in self._ever_served and number not in current
            if past and agreed and not version.slots.inside():
                del self._open[number]
                self._desk.close_for(version)
                os.close(version.descriptor)

    def _hear(self, number: int, message: object) -> None:
        front = self._fronts[number]
        match message:
            case Taken(state):
                front.taken = state
                self._moved.set()
            case Ask() | LeaveIt():
                front.answering.hear(message)

    def _lost(self, number: int, images: socket.socket) -> None:
        """The desk has lost a front: its thread says so."""
        if self._loop is not None:
            self._loop.call_soon_threadsafe(partial(self._front_gone, number, images))

    def _front_gone(self, number: int, images: socket.socket) -> None:
        front = self._fronts.get(number)
        # Heard from both sockets, the second time perhaps when another front has the number.
        if front is None or front.images is not images:
            return
        del self._fronts[number]
        front.channel.close()
        front.answering.end()
        self._on_lost(number)


def _announced(served: ServedModel) -> Announced:
    doors = served.admission
    if not isinstance(doors, Doors):
        raise TypeError(f"{served.card.name} was not loaded for fronts")
    version = doors.version
    return Announced(version.number, served.card, doors.facts, version.slots.shape, doors.capacity)
