"""Memory that the engine process and its HTTP workers share for one version of a model. It has a slot for each image in
flight, with the pixels until the forward and the answer afterwards, and the number of images in flight of each worker.

One image after another uses a slot. Each use has a generation: a number that only grows, also when another worker takes
over the slots of one that was killed. Every message and every flag names the generation, so a late or repeated one
never refers to the slot's next image.

Why not multiprocessing.shared_memory: it is limited by /dev/shm, of which a container has 64 MB."""

from __future__ import annotations

import mmap
import os
from dataclasses import dataclass

import numpy as np
import torch

from models.inference.image_job import ItemOutput
from models.interface.request import CancelToken

# Worker numbers in use at the same time, workers that are ending included.
MAX_WORKERS = 256

_PAGE = 4096
_CACHE_LINE = 64
_SECONDS_AT, _COUNTS_AT = 0, _CACHE_LINE

# Three unsigned numbers for each slot: its generation, the last generation that was cancelled, and the last generation
# whose forward has started.
_GENERATION, _CANCELLED, _STARTED = range(3)
_NUMBERS = 3


@dataclass(frozen=True, slots=True)
class SlotShape:
    """`each` slots for each of `workers` worker numbers. A slot holds an image of `side` x `side` pixels, then an
    answer of `dimensions` features, at most `classes` likeliest classes, and the probabilities of all classes."""

    workers: int
    each: int
    side: int
    dimensions: int
    classes: int

    @property
    def slot_bytes(self) -> int:
        """Size of one slot, in whole cache lines."""
        answer = self.dimensions * 4 + self.classes * (8 + 4 + 4)
        return _round_up(max(3 * self.side * self.side, answer), _CACHE_LINE)

    @property
    def bodies_at(self) -> int:
        """Where the slots begin, behind a page of counts and the slots' numbers."""
        return _round_up(_PAGE + 8 * _NUMBERS * self.workers * self.each, _PAGE)

    @property
    def total_bytes(self) -> int:
        """Size of the mapping. Pages that were never written to take no memory."""
        return self.bodies_at + self.workers * self.each * self.slot_bytes


class SharedSlots:
    """A mapping of that memory. `descriptor` stays the caller's to close. Linux only."""

    def __init__(self, descriptor: int, shape: SlotShape) -> None:
        self.shape = shape
        self._memory = mmap.mmap(descriptor, shape.total_bytes)
        whole = memoryview(self._memory)
        self._seconds = whole[_SECONDS_AT : _SECONDS_AT + 8].cast("d")
        self._counts = whole[_COUNTS_AT : _COUNTS_AT + 4 * MAX_WORKERS].cast("I")
        # Each number is written by one store, so another process reads either the old or the new one.
        self.numbers = whole[_PAGE : shape.bodies_at].cast("Q")
        self._pixels: dict[int, torch.Tensor] = {}

    @staticmethod
    def create(shape: SlotShape) -> int:
        """Return a file descriptor of new memory of that shape, all zero."""
        descriptor = os.memfd_create("gradless-slots", os.MFD_CLOEXEC)
        os.ftruncate(descriptor, shape.total_bytes)
        return descriptor

    def of_worker(self, worker: int) -> range:
        """Return the slots of a worker."""
        return range(worker * self.shape.each, (worker + 1) * self.shape.each)

    @property
    def seconds_per_image(self) -> float:
        """Forward time of an image, as the engine process measures it; 0 before the first batch."""
        return self._seconds[0]

    @seconds_per_image.setter
    def seconds_per_image(self, seconds: float) -> None:
        self._seconds[0] = seconds

    def set_in_flight(self, worker: int, images: int) -> None:
        """Set how many images a worker has in flight."""
        self._counts[worker] = images

    def in_flight(self, *, without: int | None = None) -> int:
        """Return the images in flight of all workers, or of all but one."""
        total = sum(self._counts[: self.shape.workers])
        return total if without is None else total - self._counts[without]

    def generation(self, slot: int) -> int:
        """Return the generation of the slot's current or last image; 0 if the slot was never used."""
        return self.numbers[_NUMBERS * slot + _GENERATION]

    def claim(self, slot: int) -> int:
        """Use a free slot for another image. Return the image's generation."""
        generation = self.generation(slot) + 1
        self.numbers[_NUMBERS * slot + _GENERATION] = generation
        return generation

    def pixels(self, slot: int) -> torch.Tensor:
        """Return a view of the slot: (3, side, side) uint8, channels last in memory."""
        view = self._pixels.get(slot)
        if view is None:
            side = self.shape.side
            flat = torch.frombuffer(self._memory, dtype=torch.uint8, count=3 * side * side, offset=self._body_at(slot))
            view = self._pixels[slot] = flat.view(side, side, 3).permute(2, 0, 1)
        return view

    def write(self, slot: int, output: ItemOutput) -> None:
        """Write an answer over the pixels."""
        at = self._put(self._body_at(slot), output.features)
        at = self._put(self._put(at, output.indices), output.probabilities)
        if output.all_probabilities is not None:
            self._put(at, output.all_probabilities)

    def read(self, slot: int, classes: int, *, finite: bool, all_probabilities: bool = False) -> ItemOutput:
        """Return a copy of the answer, which has that many likeliest classes, and `all_probabilities` or not."""
        dimensions, at = self.shape.dimensions, self._body_at(slot)
        features = np.frombuffer(self._memory, np.float32, dimensions, at).copy()
        at += 4 * dimensions
        indices = np.frombuffer(self._memory, np.int64, classes, at).copy()
        probabilities = np.frombuffer(self._memory, np.float32, classes, at + 8 * classes).copy()
        everything = None
        if all_probabilities:
            at += (8 + 4) * classes
            everything = np.frombuffer(self._memory, np.float32, self.shape.classes, at).copy()
        return ItemOutput(features, indices, probabilities, finite=finite, all_probabilities=everything)

    def _body_at(self, slot: int) -> int:
        return self.shape.bodies_at + slot * self.shape.slot_bytes

    def _put(self, at: int, numbers: np.ndarray) -> int:
        end = at + numbers.nbytes
        self._memory[at:end] = numbers.tobytes()
        return end


class SlotCancelToken(CancelToken):
    """The cancel token of an image in a slot. Its flag is in the shared memory: an HTTP worker cancels it, the engine
    process polls it. It is also cancelled once another image uses the slot."""

    __slots__ = ("_at", "_generation", "_numbers")

    def __init__(self, slots: SharedSlots, slot: int, generation: int) -> None:
        super().__init__()
        self._numbers = slots.numbers
        self._at = _NUMBERS * slot
        self._generation = generation

    @property
    def cancelled(self) -> bool:
        numbers, at, generation = self._numbers, self._at, self._generation
        return numbers[at + _CANCELLED] == generation or numbers[at + _GENERATION] != generation

    def cancel(self) -> None:
        self._numbers[self._at + _CANCELLED] = self._generation

    @property
    def started(self) -> bool:
        """Whether the image's forward has started."""
        return self._numbers[self._at + _STARTED] == self._generation

    def start(self) -> None:
        """Mark that the image's forward starts."""
        self._numbers[self._at + _STARTED] = self._generation


def _round_up(size: int, unit: int) -> int:
    return -(-size // unit) * unit
