"""Messages between the engine process and an HTTP worker. The pixels and the answers themselves are in shared slots.

Submission, Answers and Failure name an image by its slot and the slot's generation (models/workers/shared_slots.py).
The messages of calls are in models/workers/rpc.py."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from models.images.preprocessing import Transform
from models.interface.request import InferenceRequest
from models.interface.results import ModelCard
from models.interface.telemetry import BatchReport
from models.workers.shared_slots import SlotShape

# Slot, number of classes, generation, seconds in the queue, and whether all values are finite. A plain tuple pickles
# four times faster than a named one.
Answered = tuple[int, int, int, float, bool]


class Submission(NamedTuple):
    """An image is in its slot. The request's cancel token stays in the worker: the slot has its remote form."""

    version: int
    slot: int
    generation: int
    request: InferenceRequest


@dataclass(frozen=True, slots=True)
class Answers:
    """The answers of one batch that belong to one worker are in their slots."""

    version: int
    batch: BatchReport
    answers: Sequence[Answered]


@dataclass(frozen=True, slots=True)
class Failure:
    """An image has no answer. `error` is None if its worker had cancelled it."""

    version: int
    slot: int
    generation: int
    error: Exception | None


@dataclass(frozen=True, slots=True)
class ModelFacts:
    """What an HTTP worker needs to know of a model to preprocess its images and to name its classes."""

    name: str
    transform: Transform
    labels: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class ServedVersion:
    """One load of a model that is served. The first message with it comes with a file descriptor of its slots."""

    version: int
    card: ModelCard
    facts: ModelFacts
    shape: SlotShape
    capacity: int


@dataclass(frozen=True, slots=True)
class ServingState:
    """Everything that is served, in order. `number` grows with each announcement."""

    number: int
    models: tuple[ServedVersion, ...]
    down: frozenset[str]
    ready: bool
    draining: bool


@dataclass(frozen=True, slots=True)
class StateApplied:
    """The worker serves by the state of that number from now on."""

    number: int
