"""Progress and cancellation of a comparison."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from gradless.errors import ComparisonCancelledError
from gradless.records import ComparisonStage, Progress


@contextmanager
def isolate_failure(report: Callable[[str], object]) -> Iterator[None]:
    """Pass an exception of the block to `report` as text, and continue, so that the rest of the comparison still runs.

    ComparisonCancelledError is raised again.
    """
    try:
        yield
    except ComparisonCancelledError:
        raise
    except Exception as error:  # noqa: BLE001 - a network may raise anything
        report(f"{type(error).__name__}: {error}")


class ComparisonProgress:
    """Counts the forwards of a comparison. Before each, it checks `cancelled` and then calls `on_progress`."""

    def __init__(
        self,
        cancelled: Callable[[], bool] = lambda: False,
        on_progress: Callable[[Progress], object] = lambda _: None,
    ) -> None:
        self._cancelled = cancelled
        self._on_progress = on_progress
        self._done = 0
        self._total = 0

    def expect(self, forwards: int) -> None:
        """Add `forwards` to the total, or subtract if negative."""
        self._total += forwards

    def check(self) -> None:
        """Raise ComparisonCancelledError if the comparison was cancelled."""
        if self._cancelled():
            raise ComparisonCancelledError

    def begin(self, stage: ComparisonStage) -> None:
        """Report that the next forward is about to run. Raises ComparisonCancelledError."""
        self.check()
        self._on_progress(Progress(self._done, self._total, stage))
        self._done += 1
