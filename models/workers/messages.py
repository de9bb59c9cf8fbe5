"""What goes over the channels between the engine process and its workers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from gradless.records import Progress
from models.images.transforms import Transform
from models.interface.results import ModelCard
from models.workers.shared_slots import SlotShape

Method = Literal["load", "unload", "compare", "exposition"]


@dataclass(frozen=True, slots=True)
class Facts:
    """What is to be known of a model by those who decode for it."""

    name: str
    transform: Transform
    labels: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Announced:
    """A version of a model that is served. Its slots come as a file descriptor, the first time that a worker hears of
    it."""

    version: int
    card: ModelCard
    facts: Facts
    shape: SlotShape
    capacity: int


@dataclass(frozen=True, slots=True)
class State:
    """Everything that is served, in order, from the engine process: the `number`-th of what it has announced."""

    number: int
    models: tuple[Announced, ...]
    down: frozenset[str]
    ready: bool
    draining: bool


@dataclass(frozen=True, slots=True)
class Taken:
    """A worker goes by that state from now on."""

    number: int


@dataclass(frozen=True, slots=True)
class Ask:
    """A worker has something done that is one for the whole service."""

    number: int
    method: Method
    arguments: tuple[Any, ...]


@dataclass(frozen=True, slots=True)
class LeaveIt:
    """Nobody waits for what was asked any more."""

    number: int


@dataclass(frozen=True, slots=True)
class Heard:
    """Of the progress of what was asked."""

    number: int
    progress: Progress


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of what was asked: a result, or an error."""

    number: int
    result: Any
    error: Exception | None = None
