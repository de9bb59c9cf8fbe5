"""Split a batch that does not fit into the device's memory, and run the parts, so that its images do not fail."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Generic, TypeVar

from models.interface.errors import OutOfMemoryError
from models.interface.request import AllCancelledError
from models.interface.telemetry import InstanceId, Telemetry

_log = logging.getLogger(__name__)

Item = TypeVar("Item")
Result = TypeVar("Result")


class SplittingRun(Generic[Item, Result]):
    """Calls `run` with a batch, or with pieces of it if the device has no memory for the whole. Thread-safe.

    After a failure with n items, pieces have at most n / 2. `safe_size` is that limit, None before the first failure.
    It never grows: a device that was full once will be full again.
    """

    def __init__(
        self,
        run: Callable[[Sequence[Item]], Sequence[Result]],
        *,
        instance: InstanceId,
        out_of_memory: Callable[[BaseException], bool],
        release_memory: Callable[[], None],
        telemetry: Telemetry,
    ) -> None:
        self._run = run
        self._instance = instance
        self._out_of_memory = out_of_memory
        self._release_memory = release_memory
        self._telemetry = telemetry
        self.safe_size: int | None = None

    def __call__(self, items: Sequence[Item]) -> list[Result | OutOfMemoryError | AllCancelledError]:
        """Return one result per item, in order: OutOfMemoryError for an item that does not fit alone,
        AllCancelledError for the items of a piece that was cancelled. Raises any other error of `run`, and
        AllCancelledError if the whole batch was cancelled."""
        results: list[Result | OutOfMemoryError | AllCancelledError] = []
        while len(results) < len(items):
            piece = items[len(results) :][: self.safe_size]
            try:
                done: Sequence[Result | AllCancelledError] | None = self._try(piece)
            except AllCancelledError:
                if len(piece) == len(items):
                    raise
                # Other pieces may still have clients.
                done = [AllCancelledError() for _ in piece]
            if done is not None:
                results += done
            elif len(piece) == 1:
                results.append(OutOfMemoryError(self._instance.model))
            else:
                # Another batch thread may have set a lower limit meanwhile.
                self.safe_size = min(len(piece) // 2, self.safe_size or len(piece))
                self._telemetry.batch_split(self._instance)
                _log.warning("%s: forwards have at most %d images from now on", self._instance.model, self.safe_size)
        return results

    def _try(self, piece: Sequence[Item]) -> Sequence[Result] | None:
        try:
            return self._run(piece)
        except Exception as error:
            if not self._out_of_memory(error):
                raise
            _log.warning("%s: no memory for a forward of %d images: %s", self._instance.model, len(piece), error)
        # Outside the handler: the frames of the error hold the tensors that fill the memory.
        self._telemetry.out_of_memory(self._instance)
        self._release_memory()
        return None
