"""How far a comparison has come, and whether anybody still waits for it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from gradless.records import ComparisonStage, Progress


class ComparisonAbandonedError(Exception):
    """Whoever asked for the comparison has gone."""


@contextmanager
def isolate_failure(tell: Callable[[str], object]) -> Iterator[None]:
    """`tell` in words what is raised inside, and go on behind it: what else is compared has its answers then. But not
    when nobody waits any more."""
    try:
        yield
    except ComparisonAbandonedError:
        raise
    except Exception as error:  # noqa: BLE001 - whatever a network raises
        tell(f"{type(error).__name__}: {error}")


class ComparisonProgress:
    """Counts the forwards of a comparison. `on_progress` hears of each before it runs; `abandoned` is asked then."""

    def __init__(self, abandoned: Callable[[], bool], on_progress: Callable[[Progress], None]) -> None:
        self._abandoned = abandoned
        self._on_progress = on_progress
        self._done = 0
        self._total = 0

    def expect(self, forwards: int) -> None:
        """That many more are to come; fewer, if negative."""
        self._total += forwards

    def check(self) -> None:
        """Raises ComparisonAbandonedError once nobody waits any more."""
        if self._abandoned():
            raise ComparisonAbandonedError

    def begin(self, stage: ComparisonStage) -> None:
        """The next forward is about to run. Raises ComparisonAbandonedError."""
        self.check()
        self._on_progress(Progress(self._done, self._total, stage))
        self._done += 1
