"""The registry of served models by name. Every request reads it; it changes one name at a time."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from types import MappingProxyType
from typing import TypeVar

from models.interface.errors import LastModelError, ModelChangingError, ModelDownError, UnknownModelError
from models.interface.results import ModelCard
from models.serving.served_model import ServedModel

T = TypeVar("T")


def find_model(models: Mapping[str, T], down: Collection[str], name: str | None) -> T:
    """Return the model called `name`; the first one, which is the default, for None. `down` are the names of models
    that do not answer. Raises UnknownModelError, ModelDownError."""
    found = next(iter(models)) if name is None else name
    if found not in models:
        raise UnknownModelError(found, list(models))
    if found in down:
        raise ModelDownError(found)
    return models[found]


class ModelRegistry:
    """The served models, the default first. Thread-safe. Readers take no lock: a change is one assignment, so
    they see all of it or nothing."""

    def __init__(self) -> None:
        self._models: Mapping[str, ServedModel] = MappingProxyType({})
        self._down: frozenset[str] = frozenset()
        self._changing: set[str] = set()
        self._versions: Counter[str] = Counter()
        self._lock = threading.Lock()

    @property
    def models(self) -> Mapping[str, ServedModel]:
        """The current models by name. A later change makes another mapping."""
        return self._models

    @property
    def down(self) -> frozenset[str]:
        """Names of models that have stopped working and are not replaced yet."""
        return self._down

    def find(self, name: str | None) -> ServedModel:
        """As `find_model`."""
        return find_model(self._models, self._down, name)

    @contextmanager
    def changing(self, name: str) -> Iterator[None]:
        """Hold the exclusive right to change `name`. Raises ModelChangingError if another thread holds it."""
        with self._lock:
            if name in self._changing:
                raise ModelChangingError(name)
            self._changing.add(name)
        try:
            yield
        finally:
            with self._lock:
                self._changing.discard(name)

    def register(self, served: ServedModel) -> ModelCard:
        """Serve `served` from now on. It replaces the model of its name, or becomes the last one. Returns its card with
        its version number."""
        name = served.card.name
        with self._lock:
            self._versions[name] += 1
            numbered = replace(served, card=replace(served.card, version=self._versions[name]))
            self._models = MappingProxyType({**self._models, name: numbered})
            self._down -= {name}
        return numbered.card

    def remove(self, name: str) -> ServedModel:
        """Stop serving `name`, and return its model. Raises UnknownModelError, LastModelError."""
        with self._lock:
            if name not in self._models:
                raise UnknownModelError(name, list(self._models))
            if len(self._models) == 1:
                raise LastModelError(name)
            removed = self._models[name]
            self._models = MappingProxyType({key: each for key, each in self._models.items() if key != name})
            self._down -= {name}
            return removed

    def mark_down(self, served: ServedModel) -> bool:
        """Refuse requests for this model until it is registered again. Returns False if it already is."""
        name = served.card.name
        with self._lock:
            if self._models.get(name) is not served:
                return False
            self._down |= {name}
            return True

    def health_problems(self) -> dict[str, str]:
        """Return why models cannot answer, by name. A model that is down and being replaced has no problem."""
        return {
            name: problem
            for name, served in self._models.items()
            if (problem := served.health_problem()) is not None and not (name in self._down and name in self._changing)
        }
