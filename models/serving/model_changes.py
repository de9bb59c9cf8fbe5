"""Changes to what is served while it is served: load, reload, unload, and starting anew what has stopped."""

from __future__ import annotations

import asyncio
import logging
import threading
import weakref
from collections.abc import Callable, Coroutine
from dataclasses import replace
from typing import Any, TypeVar

from torch import nn

from models.hardware import memory
from models.interface.errors import (
    DrainingError,
    GradlessError,
    LoadTimeoutError,
    ModelChangingError,
    ModelDownError,
    ModelGoneError,
    ModelNotLoadedError,
    NoRoomError,
    StartError,
    TooManyModelsError,
    UnknownModelError,
)
from models.interface.results import Loaded
from models.lens.runner import Lens
from models.loading import sources
from models.loading.sources import ModelSource
from models.networks.specs import ModelSpec
from models.scheduling.background import BackgroundWork
from models.serving.model_instance import ModelInstance, ServingContext, serve_model
from models.serving.registry import ModelRegistry

_log = logging.getLogger(__name__)

T = TypeVar("T")

# Loads that nobody waits for any more, and that have not ended: each keeps a thread, and what it has read so far.
_MOST_LEFT_BEHIND = 4


class ModelChanges:
    """Puts models on the roster and takes them off it. Coroutines belong to one event loop, on which a model takes over
    from another in one step; what takes long runs in threads that nobody has to wait for at the process's end."""

    def __init__(self, roster: ModelRegistry, around: ServingContext, lens: Lens, draining: Callable[[], bool]) -> None:
        self._roster = roster
        self._around = around
        self._lens = lens
        self._draining = draining
        self._under_way: str | None = None
        self._left: weakref.WeakSet[nn.Module] = weakref.WeakSet()
        self._left_behind: list[BackgroundWork[ModelInstance | GradlessError]] = []
        self._idle = threading.Event()
        self._idle.set()

    def start(self, spec: ModelSpec, origin: ModelSource) -> None:
        """Load a model and serve it. Blocks: for before the first request. Raises StartError."""
        card = self._roster.put(serve_model(spec, origin, self._around))
        self._around.telemetry.model_served(card.name)

    async def load(self, name: str, source: str | None) -> Loaded:
        """Load a model from `source`, or without one from where that of its name came from. It warms up beside the
        others and takes over in one step; what was served under its name answers all that it has accepted, and is gone
        when this returns. Goes on when cancelled.

        Raises UnknownModelError without source, ModelNotLoadedError, NoRoomError, LoadTimeoutError, ModelChangingError,
        TooManyModelsError, DrainingError.
        """
        origin = self._origin(name, source)
        return await self._alone(name, self._load(name, origin))

    async def unload(self, name: str) -> None:
        """Serve the model no more. What it has accepted is answered, and its memory given back, when this returns. Goes
        on when cancelled. Raises UnknownModelError, LastModelError, ModelChangingError."""
        await self._alone(name, self._unload(name))

    def start_anew(self, name: str) -> None:
        """Give those who wait for a model that has stopped their errors, and put a new one in its place. Blocks, in the
        supervisor's thread. Raises StartError."""
        old = self._roster.served.get(name)
        if old is None or not self.take_down(old):
            return
        try:
            with self._roster.changing(name):
                self._start_anew(old)
        except ModelChangingError:
            # Somebody is putting another in its place, or none: if that fails, it is still down.
            return

    def take_down(self, ill: ModelInstance) -> bool:
        """Nobody is answered by this model any more: give those who wait for it their errors. False if it is well, or
        another is in its place. From any thread."""
        if ill.ailment() is None or not self._roster.take_down(ill):
            return False
        name = ill.card.name
        ill.batcher.abandon(lambda: ModelDownError(name))
        # A lens that waits for the turn on a device that hangs would wait for ever.
        self._lens.leave_hanging(ill.engine, ModelDownError(name))
        return True

    def wait(self, timeout_s: float) -> bool:
        """Until no change is under way. False if one still was after `timeout_s`."""
        return self._idle.wait(timeout_s)

    def _start_anew(self, old: ModelInstance) -> None:
        name = old.card.name
        if self._roster.served.get(name) is not old:
            # Another took its place in the last moment.
            return
        timeout_s = self._around.options.load_timeout_s
        loading = BackgroundWork(
            lambda: serve_model(replace(old.origin(), name=name), old.origin, self._around),
            f"loader-{name}",
            unwanted=self._discard,
        )
        try:
            new = loading.wait(timeout_s)
        except TimeoutError as error:
            raise StartError(f"{name} had not loaded after {timeout_s:g} s") from error
        self._roster.put(new)
        # Drained while it was loading.
        if self._draining():
            new.admission.close()
        self._around.telemetry.model_replaced(name)
        self._around.telemetry.model_served(name)

    def _origin(self, name: str, source: str | None) -> ModelSource:
        if source is not None:
            return sources.from_request(source, name, self._around.options.models_folder)
        served = self._roster.served
        if name not in served:
            raise UnknownModelError(name, list(served))
        return served[name].origin

    async def _alone(self, name: str, change: Coroutine[Any, Any, T]) -> T:
        """The result of `change`, in a task of its own: it has begun, and is not undone because its caller leaves."""
        if self._under_way is not None or self._draining():
            change.close()
            raise DrainingError if self._under_way is None else ModelChangingError(self._under_way)
        self._under_way = name
        self._idle.clear()
        task = asyncio.create_task(self._until_all_is_gone(name, change))
        # Heard of by nobody, if the caller has left: its failure has been logged.
        task.add_done_callback(lambda done: done.cancelled() or done.exception())
        return await asyncio.shield(task)

    async def _until_all_is_gone(self, name: str, change: Coroutine[Any, Any, T]) -> T:
        try:
            with self._roster.changing(name):
                result = await change
        finally:
            change.close()
            try:
                await self._let_go(name)
            finally:
                self._under_way = None
                self._idle.set()
        return result

    async def _let_go(self, name: str) -> None:
        # By now nothing refers to what has been replaced, or was not finished, but what refers to itself.
        device = self._around.placement.device
        left, self._left = self._left, weakref.WeakSet()
        await BackgroundWork(lambda: memory.release(device, left), f"unloader-{name}").result()

    async def _load(self, name: str, origin: ModelSource) -> Loaded:
        replaced = self._roster.served.get(name)
        limit = self._around.options.max_models
        if replaced is None and len(self._roster.served) >= limit:
            raise TooManyModelsError(limit)
        built = await self._built_in_time(name, origin)
        if isinstance(built, GradlessError):
            self._around.telemetry.model_not_loaded(name)
            raise built
        card = self._roster.put(built)
        # Drained at the last moment.
        if self._draining():
            built.admission.close()
        self._around.telemetry.model_served(name)
        _log.info("loaded %s, version %d, fingerprint %s", name, card.version, card.fingerprint)
        if replaced is not None:
            await self._retire(replaced)
        return Loaded(card, replaced=replaced is not None)

    async def _built_in_time(self, name: str, origin: ModelSource) -> ModelInstance | GradlessError:
        """As `_built`, in a thread; a LoadTimeoutError where that goes on for too long. The thread is left behind: what
        it waits for, a disk say, or code of the user's, cannot be interrupted."""
        self._left_behind = [each for each in self._left_behind if each.under_way]
        if len(self._left_behind) >= _MOST_LEFT_BEHIND:
            return LoadTimeoutError(
                name, f"{len(self._left_behind)} earlier loads have not ended; restart the service to be rid of them."
            )
        timeout_s = self._around.options.load_timeout_s
        loading = BackgroundWork(lambda: self._built(name, origin), f"loader-{name}", unwanted=self._discard)
        try:
            return await loading.result(timeout_s)
        except TimeoutError:
            _log.error("%s had not loaded after %g s: the thread that loads it is left behind", name, timeout_s)
            self._left_behind.append(loading)
            return LoadTimeoutError(name, f"it had not loaded after {timeout_s:g} s (GRADLESS_LOAD_TIMEOUT_S).")

    def _discard(self, built: ModelInstance | GradlessError) -> None:
        """End what nobody will be answered by."""
        if isinstance(built, ModelInstance):
            built.end(self._around.options.forward_timeout_s)
            if self._around.reception is not None:
                self._around.reception.forget(built.admission)

    def _built(self, name: str, origin: ModelSource) -> ModelInstance | GradlessError:
        """The model, or what to tell of why there is none: an error without a traceback, which would keep all that had
        been loaded."""
        try:
            new = serve_model(replace(origin(), name=name), origin, self._around, beside_others=True)
        except NoRoomError as error:
            return NoRoomError(name, error.reason)
        except StartError as error:
            _log.warning("%s was not loaded: %s", name, error)
            ran_out = memory.ran_out(error.__cause__ or error)
            return NoRoomError(name, str(error)) if ran_out else ModelNotLoadedError(name, str(error))
        except Exception as error:  # noqa: BLE001 - whatever it was: what is served goes on
            _log.exception("%s was not loaded", name)
            reason = f"{type(error).__name__}: {error}".splitlines()[0]
            return NoRoomError(name, reason) if memory.ran_out(error) else ModelNotLoadedError(name, reason)
        if self._draining():
            self._discard(new)
            return DrainingError()
        return new

    async def _unload(self, name: str) -> None:
        removed = self._roster.remove(name)
        await self._retire(removed)
        self._around.telemetry.model_gone(name)
        _log.info("unloaded %s; the default is %s", name, next(iter(self._roster.served)))

    async def _retire(self, old: ModelInstance) -> None:
        """Wait until `old`, which nobody finds any more, has answered all that it has accepted, and end its threads."""
        name = old.card.name
        self._left = weakref.WeakSet(old.engine.model.network.modules())
        lens_is_over = self._lens.leave(old.engine, ModelGoneError(name))
        await old.admission.emptied()

        def end() -> None:
            patience_s = self._around.options.forward_timeout_s
            if lens_is_over is not None and not lens_is_over.wait(patience_s):
                _log.error("a comparison on %s hangs: its threads are left behind", name)
            elif not old.end(patience_s):
                _log.error("a forward of %s hangs: its threads are left behind", name)

        await BackgroundWork(end, f"unloader-{name}").result()
