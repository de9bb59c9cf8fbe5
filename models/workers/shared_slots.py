"""Memory that the engine process shares with its workers for one model: a slot for each image on its way, which holds
its pixels until the forward and its answer afterwards, and how many images each worker has inside.

A slot is used by one image after another. Each use has a generation, a number that only grows, also when another worker
takes over the slots of one that was killed. Every message and every flag names the generation, so what is late or
repeated is never taken for the image that has the slot now."""

from __future__ import annotations

import mmap
import os
from dataclasses import dataclass

import numpy as np
import torch

from models.inference.batch_item import ItemOutput
from models.interface.cancellation import CancelToken

# Workers that are numbered at the same time, those that are going included.
MOST_WORKERS = 256

_PAGE = 4096
_LINE = 64
_PACE_AT, _COUNTS_AT = 0, _LINE

# What is said of each slot, one unsigned number each: the generation that has it, and the last generation that was
# abandoned, and whose forward has begun.
_GENERATION, _ABANDONED, _BEGUN = range(3)
_SAID = 3
_NUMBER_BYTES = 8


@dataclass(frozen=True, slots=True)
class SlotShape:
    """How many slots there are, `each` for every one of `workers` worker numbers, and what one holds: an image of
    `side` pixels, then an answer of `dimensions` features and up to `classes` classes."""

    workers: int
    each: int
    side: int
    dimensions: int
    classes: int

    @property
    def slots(self) -> int:
        return self.workers * self.each

    @property
    def slot_bytes(self) -> int:
        """Of one slot, on whole cache lines."""
        answer = self.dimensions * 4 + self.classes * (8 + 4)
        return _whole(max(3 * self.side * self.side, answer), _LINE)

    @property
    def said_at(self) -> int:
        return _PAGE

    @property
    def said_bytes(self) -> int:
        """Of the numbers of all slots."""
        return _SAID * _NUMBER_BYTES * self.slots

    @property
    def bodies_at(self) -> int:
        return _whole(self.said_at + self.said_bytes, _PAGE)

    @property
    def total_bytes(self) -> int:
        """Of which those are memory that have been written to."""
        return self.bodies_at + self.slots * self.slot_bytes


class SharedSlots:
    """A mapping of that memory, by a file descriptor that is the caller's to close. Linux."""

    def __init__(self, descriptor: int, shape: SlotShape) -> None:
        self.shape = shape
        self._memory = mmap.mmap(descriptor, shape.total_bytes)
        whole = memoryview(self._memory)
        self._pace = whole[_PACE_AT : _PACE_AT + 8].cast("d")
        self._counts = whole[_COUNTS_AT : _COUNTS_AT + 4 * MOST_WORKERS].cast("I")
        # One store each, so that another process reads a number as it was or as it is.
        self._said = whole[shape.said_at : shape.said_at + shape.said_bytes].cast("Q")
        self._pixels: dict[int, torch.Tensor] = {}

    @staticmethod
    def create(shape: SlotShape) -> int:
        """A file descriptor of such memory, zero all of it."""
        descriptor = os.memfd_create("gradless-slots", os.MFD_CLOEXEC)
        os.ftruncate(descriptor, shape.total_bytes)
        return descriptor

    def of_worker(self, worker: int) -> range:
        """The slots of a worker."""
        return range(worker * self.shape.each, (worker + 1) * self.shape.each)

    @property
    def pace(self) -> float:
        """Seconds that the device needs for an image."""
        return self._pace[0]

    @pace.setter
    def pace(self, seconds: float) -> None:
        self._pace[0] = seconds

    def count(self, worker: int, images: int) -> None:
        """Say how many images a worker has inside."""
        self._counts[worker] = images

    def inside(self, but: int | None = None) -> int:
        """Images that all workers have inside, or all `but` one."""
        every = sum(self._counts[: self.shape.workers])
        return every if but is None else every - self._counts[but]

    def generation(self, slot: int) -> int:
        """The generation that has the slot, or had it last; 0 for a slot that was never used."""
        return self._said[_SAID * slot + _GENERATION]

    def claim(self, slot: int) -> int:
        """Use a free slot for another image. Returns the image's generation."""
        generation = self.generation(slot) + 1
        self._said[_SAID * slot + _GENERATION] = generation
        return generation

    def abandon(self, slot: int, generation: int) -> bool:
        """Say that nobody waits for that image any more. False where its forward had begun."""
        self._said[_SAID * slot + _ABANDONED] = generation
        return self._said[_SAID * slot + _BEGUN] != generation

    def abandoned(self, slot: int, generation: int) -> bool:
        """Whether nobody waits for that image, which is also so once another has its slot."""
        return self._said[_SAID * slot + _ABANDONED] == generation or self.generation(slot) != generation

    def begin(self, slot: int, generation: int) -> None:
        """Say that the forward of that image begins."""
        self._said[_SAID * slot + _BEGUN] = generation

    def pixels(self, slot: int) -> torch.Tensor:
        """(3, side, side) uint8, channels last in memory: a view of the slot."""
        view = self._pixels.get(slot)
        if view is None:
            side = self.shape.side
            flat = torch.frombuffer(self._memory, dtype=torch.uint8, count=3 * side * side, offset=self._body_at(slot))
            view = self._pixels[slot] = flat.view(side, side, 3).permute(2, 0, 1)
        return view

    def write(self, slot: int, output: ItemOutput) -> None:
        """Put an answer in the place of the pixels."""
        at = self._body_at(slot)
        at = self._put(at, output.features)
        if output.indices is not None and output.probabilities is not None:
            self._put(self._put(at, output.indices), output.probabilities)

    def read(self, slot: int, classes: int, *, finite: bool) -> ItemOutput:
        """The answer, with so many classes, as arrays of its own."""
        dimensions, at = self.shape.dimensions, self._body_at(slot)
        features = np.frombuffer(self._memory, np.float32, dimensions, at).copy()
        if not classes:
            return ItemOutput(features, None, None, finite=finite)
        at += 4 * dimensions
        indices = np.frombuffer(self._memory, np.int64, classes, at).copy()
        probabilities = np.frombuffer(self._memory, np.float32, classes, at + 8 * classes).copy()
        return ItemOutput(features, indices, probabilities, finite=finite)

    def _body_at(self, slot: int) -> int:
        return self.shape.bodies_at + slot * self.shape.slot_bytes

    def _put(self, at: int, numbers: np.ndarray) -> int:
        end = at + numbers.nbytes
        self._memory[at:end] = numbers.tobytes()
        return end


class SlotCancelToken(CancelToken):
    """The cancel token of an image in a slot. Its flag is in the shared memory: an HTTP worker cancels it, the engine
    process polls it. It is also cancelled once another image has the slot."""

    __slots__ = ("_generation", "_slot", "_slots")

    def __init__(self, slots: SharedSlots, slot: int, generation: int) -> None:
        super().__init__()
        self._slots = slots
        self._slot = slot
        self._generation = generation

    @property
    def cancelled(self) -> bool:
        return self._slots.abandoned(self._slot, self._generation)

    def cancel(self) -> None:
        self._slots.abandon(self._slot, self._generation)


def _whole(size: int, unit: int) -> int:
    return -(-size // unit) * unit
