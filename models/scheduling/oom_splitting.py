"""A batch that does not fit into the device's memory is split and tried again: no image fails for its company."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Generic, TypeVar

from models.interface.cancellation import AllCancelledError
from models.interface.errors import OutOfMemoryError
from models.interface.telemetry import Telemetry

_log = logging.getLogger(__name__)

Item = TypeVar("Item")
Result = TypeVar("Result")


class SplittingRun(Generic[Item, Result]):
    """Runs batches by `run`, in pieces where the device has no memory for the whole. Any thread.

    What fits is learned: after a failure with n items no piece has more than half of n. `safe_size` is None until
    then, and never grows again, since a device that was full once will be again.
    """

    def __init__(
        self,
        run: Callable[[Sequence[Item]], Sequence[Result]],
        *,
        model: str,
        out_of_memory: Callable[[BaseException], bool],
        release_memory: Callable[[], None],
        telemetry: Telemetry,
    ) -> None:
        self._run = run
        self._model = model
        self._out_of_memory = out_of_memory
        self._release_memory = release_memory
        self._telemetry = telemetry
        self.safe_size: int | None = None

    def __call__(self, items: Sequence[Item]) -> list[Result | OutOfMemoryError | AllCancelledError]:
        """As many results as `items`, in their order; OutOfMemoryError for one that does not even fit alone, and
        AllCancelledError for those of a piece that was given up. Raises what `run` raises for any other reason, the
        latter where it was of the whole."""
        results: list[Result | OutOfMemoryError | AllCancelledError] = []
        while len(results) < len(items):
            piece = items[len(results) :][: self.safe_size]
            try:
                done: Sequence[Result | AllCancelledError] | None = self._try(piece)
            except AllCancelledError:
                if len(piece) == len(items):
                    raise
                # For this piece nobody waits, which says nothing of the others.
                done = [AllCancelledError() for _ in piece]
            if done is not None:
                results += done
            elif len(piece) == 1:
                results.append(OutOfMemoryError(self._model))
            else:
                # Another lane may have learned more meanwhile.
                self.safe_size = min(len(piece) // 2, self.safe_size or len(piece))
                self._telemetry.batch_split(self._model)
                _log.warning("%s runs at most %d images at a time from now on", self._model, self.safe_size)
        return results

    def _try(self, piece: Sequence[Item]) -> Sequence[Result] | None:
        try:
            return self._run(piece)
        except Exception as error:
            if not self._out_of_memory(error):
                raise
            _log.warning("%s: no memory for a forward of %d images: %s", self._model, len(piece), error)
        # Outside the handler: the error's frames hold the very tensors that are in the way.
        self._telemetry.out_of_memory(self._model)
        self._release_memory()
        return None
