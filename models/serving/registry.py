"""Which models are served, by name: looked through by every request, changed one name at a time."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from types import MappingProxyType

from models.interface.errors import LastModelError, ModelChangingError, UnknownModelError
from models.interface.results import ModelCard
from models.serving.finding import find
from models.serving.model_instance import ModelInstance


class ModelRegistry:
    """The served models, the default first. For any thread: who reads takes no lock, and sees all of a change or
    nothing of it."""

    def __init__(self) -> None:
        self._served: Mapping[str, ModelInstance] = MappingProxyType({})
        self._down: frozenset[str] = frozenset()
        self._changing: set[str] = set()
        self._versions: Counter[str] = Counter()
        self._lock = threading.Lock()

    @property
    def served(self) -> Mapping[str, ModelInstance]:
        """All of them by name, as they are now: a later change makes another mapping."""
        return self._served

    @property
    def down(self) -> frozenset[str]:
        """Names whose model has stopped working, and has no other in its place yet."""
        return self._down

    def find(self, name: str | None) -> ModelInstance:
        """The model of that name, the default for None. Raises UnknownModelError, ModelDownError."""
        return find(self._served, self._down, name)

    @contextmanager
    def changing(self, name: str) -> Iterator[None]:
        """Nobody else changes what is served under `name` meanwhile. Raises ModelChangingError if somebody does."""
        with self._lock:
            if name in self._changing:
                raise ModelChangingError(name)
            self._changing.add(name)
        try:
            yield
        finally:
            with self._lock:
                self._changing.discard(name)

    def put(self, model: ModelInstance) -> ModelCard:
        """Serve it from now on, in the place of the one of its name if there is one, else as the last. Its card, with
        the version that it is."""
        name = model.card.name
        with self._lock:
            self._versions[name] += 1
            numbered = replace(model, card=replace(model.card, version=self._versions[name]))
            self._served = MappingProxyType({**self._served, name: numbered})
            self._down -= {name}
        return numbered.card

    def remove(self, name: str) -> ModelInstance:
        """Serve it no more, and give it back. Raises UnknownModelError, LastModelError."""
        with self._lock:
            if name not in self._served:
                raise UnknownModelError(name, list(self._served))
            if len(self._served) == 1:
                raise LastModelError(name)
            removed = self._served[name]
            self._served = MappingProxyType({key: each for key, each in self._served.items() if key != name})
            self._down -= {name}
            return removed

    def take_down(self, model: ModelInstance) -> bool:
        """Have requests for it refused until another takes its place. False if another has."""
        name = model.card.name
        with self._lock:
            if self._served.get(name) is not model:
                return False
            self._down |= {name}
            return True

    def ailments(self) -> dict[str, str]:
        """What keeps models from answering, by name. Of one that is down, nothing while it is being replaced."""
        return {
            name: ailment
            for name, model in self._served.items()
            if (ailment := model.ailment()) is not None and not (name in self._down and name in self._changing)
        }
