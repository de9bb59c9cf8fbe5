"""Model lifecycle: load, reload, unload and restart models while others are served."""

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
from models.interface.results import Loaded, ModelCard
from models.loading import catalog
from models.loading.catalog import ModelSource
from models.networks.specs import ModelSpec
from models.serving.background import BackgroundWork
from models.serving.lens import Lens
from models.serving.model_instance import ServingContext
from models.serving.registry import ModelRegistry
from models.serving.served_model import ServedModel, serve_model

_log = logging.getLogger(__name__)

T = TypeVar("T")

# Loads that timed out and still run, each in its own thread with its own memory.
_MAX_LEFT_BEHIND = 4


class ModelChanges:
    """Adds models to the registry, replaces and removes them.

    Coroutines belong to one event loop, on which one version replaces another in one step. Slow work runs in daemon
    threads, which do not delay the end of the process.
    """

    def __init__(
        self, registry: ModelRegistry, context: ServingContext, lens: Lens, draining: Callable[[], bool]
    ) -> None:
        self._registry = registry
        self._context = context
        self._lens = lens
        self._draining = draining
        self._changing: str | None = None
        self._replaced_modules: weakref.WeakSet[nn.Module] = weakref.WeakSet()
        self._left_behind: list[BackgroundWork[ServedModel | GradlessError]] = []
        self._idle = threading.Event()
        self._idle.set()

    def start(self, spec: ModelSpec, origin: ModelSource) -> None:
        """Load a model and serve it, before the first request. Blocks. Raises StartError."""
        self._register(serve_model(spec, origin, self._context))

    async def load(self, name: str, source: str | None) -> Loaded:
        """As Runtime.load. The new version is loaded and warmed up while the old one serves."""
        origin = self._origin(name, source)
        return await self._exclusively(name, self._load(name, origin))

    async def unload(self, name: str) -> None:
        """As Runtime.unload."""
        await self._exclusively(name, self._unload(name))

    def restart(self, name: str) -> None:
        """Replace an unhealthy model by a new version; its clients receive errors. Blocks. Called by the supervisor's
        thread. Raises StartError."""
        old = self._registry.models.get(name)
        if old is None or not self.mark_down(old):
            return
        try:
            with self._registry.changing(name):
                self._restart(old)
        except ModelChangingError:
            # A load or unload is replacing it. If that fails, the model is still down at the next check.
            return

    def mark_down(self, served: ServedModel) -> bool:
        """Take an unhealthy model out of service and answer its clients with errors. From any thread.

        Returns False if it is healthy, or replaced by now.
        """
        if served.health_problem() is None or not self._registry.mark_down(served):
            return False
        name = served.card.name
        served.abandon(lambda: ModelDownError(name))
        # A comparison that waits for the engine's lock would wait for as long as the forward hangs.
        self._lens.leave_hanging(served.engine, ModelDownError(name))
        return True

    def wait(self, timeout_s: float) -> bool:
        """Wait until no change is under way. Returns False if one still was after `timeout_s`."""
        return self._idle.wait(timeout_s)

    def _restart(self, old: ServedModel) -> None:
        name = old.card.name
        if self._registry.models.get(name) is not old:
            # It was replaced in the meantime.
            return
        timeout_s = self._context.options.load_timeout_s
        loading = BackgroundWork(
            lambda: serve_model(replace(old.origin(), name=name), old.origin, self._context),
            f"loader-{name}",
            discard=self._discard,
        )
        try:
            new = loading.wait(timeout_s)
        except TimeoutError as error:
            raise StartError(f"{name} had not loaded after {timeout_s:g} s") from error
        self._register(new)
        self._context.telemetry.model_replaced(name)

    def _register(self, new: ServedModel) -> ModelCard:
        card = self._registry.register(new)
        # `drain` closes the registered models: it may have missed this one.
        if self._draining():
            new.admission.close()
        self._context.telemetry.model_served(card.name, card.devices)
        return card

    def _origin(self, name: str, source: str | None) -> ModelSource:
        if source is not None:
            return catalog.from_request(source, name, self._context.options.models_folder)
        models = self._registry.models
        if name not in models:
            raise UnknownModelError(name, list(models))
        return models[name].origin

    async def _exclusively(self, name: str, change: Coroutine[Any, Any, T]) -> T:
        """Run `change` in its own task, which goes on if this call is cancelled. One change runs at a time."""
        if self._changing is not None or self._draining():
            change.close()
            raise DrainingError if self._changing is None else ModelChangingError(self._changing)
        self._changing = name
        self._idle.clear()
        task = asyncio.create_task(self._change_and_free(name, change))
        # If this call was cancelled, nothing else retrieves the task's error, which is logged already.
        task.add_done_callback(lambda done: done.cancelled() or done.exception())
        return await asyncio.shield(task)

    async def _change_and_free(self, name: str, change: Coroutine[Any, Any, T]) -> T:
        try:
            with self._registry.changing(name):
                result = await change
        finally:
            change.close()
            try:
                await self._free_memory(name)
            finally:
                self._changing = None
                self._idle.set()
        return result

    async def _free_memory(self, name: str) -> None:
        # By now a replaced or unfinished model is referred to by its own reference cycles alone.
        modules, self._replaced_modules = self._replaced_modules, weakref.WeakSet()
        devices = [placement.device for placement in self._context.placements]
        await BackgroundWork(lambda: memory.release(devices, modules), f"unloader-{name}").result()

    async def _load(self, name: str, origin: ModelSource) -> Loaded:
        replaced = self._registry.models.get(name)
        limit = self._context.options.max_models
        if replaced is None and len(self._registry.models) >= limit:
            raise TooManyModelsError(limit)
        loaded = await self._load_in_thread(name, origin)
        if isinstance(loaded, GradlessError):
            self._context.telemetry.model_not_loaded(name)
            raise loaded
        card = self._register(loaded)
        _log.info("loaded %s, version %d, fingerprint %s", name, card.version, card.fingerprint)
        if replaced is not None:
            await self._retire(replaced)
        return Loaded(card, replaced=replaced is not None)

    async def _load_in_thread(self, name: str, origin: ModelSource) -> ServedModel | GradlessError:
        """As `_load_or_error`, in a thread. After a timeout the thread is left behind: a slow disk or the user's own
        code cannot be interrupted."""
        self._left_behind = [each for each in self._left_behind if each.running]
        if len(self._left_behind) >= _MAX_LEFT_BEHIND:
            return LoadTimeoutError(
                name, f"{len(self._left_behind)} earlier loads have not ended; restart the service to end them."
            )
        timeout_s = self._context.options.load_timeout_s
        loading = BackgroundWork(lambda: self._load_or_error(name, origin), f"loader-{name}", discard=self._discard)
        try:
            return await loading.result(timeout_s)
        except TimeoutError:
            _log.error("%s had not loaded after %g s: the thread that loads it is left behind", name, timeout_s)
            self._left_behind.append(loading)
            return LoadTimeoutError(name, f"it had not loaded after {timeout_s:g} s (GRADLESS_LOAD_TIMEOUT_S).")

    def _discard(self, loaded: ServedModel | GradlessError) -> None:
        """Close a model that will not be served."""
        if isinstance(loaded, ServedModel):
            loaded.close(self._context.options.forward_timeout_s)
            if self._context.remote is not None:
                self._context.remote.forget(loaded.admission)

    def _load_or_error(self, name: str, origin: ModelSource) -> ServedModel | GradlessError:
        """Return the new model, or the error to raise. The error has no traceback: that would keep the memory of
        what was loaded."""
        try:
            new = serve_model(replace(origin(), name=name), origin, self._context, check_memory=True)
        except NoRoomError as error:
            return NoRoomError(name, error.reason)
        except StartError as error:
            _log.warning("%s was not loaded: %s", name, error)
            ran_out = memory.ran_out(error.__cause__ or error)
            return NoRoomError(name, str(error)) if ran_out else ModelNotLoadedError(name, str(error))
        except Exception as error:  # noqa: BLE001 - any error: the served models go on
            _log.exception("%s was not loaded", name)
            reason = f"{type(error).__name__}: {error}".splitlines()[0]
            return NoRoomError(name, reason) if memory.ran_out(error) else ModelNotLoadedError(name, reason)
        if self._draining():
            self._discard(new)
            return DrainingError()
        return new

    async def _unload(self, name: str) -> None:
        removed = self._registry.remove(name)
        await self._retire(removed)
        self._context.telemetry.model_gone(name)
        _log.info("unloaded %s; the default is %s", name, next(iter(self._registry.models)))

    async def _retire(self, old: ServedModel) -> None:
        """Wait until a model that is out of the registry has answered its requests, and end its threads."""
        name = old.card.name
        self._replaced_modules = weakref.WeakSet(
            module for each in old.instances for module in each.engine.model.network.modules()
        )
        comparison_ended = self._lens.leave(old.engine, ModelGoneError(name))
        await old.admission.wait_until_empty()

        def close() -> None:
            timeout_s = self._context.options.forward_timeout_s
            if comparison_ended is not None and not comparison_ended.wait(timeout_s):
                _log.error("a comparison on %s hangs: its threads are left behind", name)
            elif not old.close(timeout_s):
                _log.error("a forward of %s hangs: its threads are left behind", name)

        await BackgroundWork(close, f"unloader-{name}").result()
