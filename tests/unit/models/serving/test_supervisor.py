"""What has stopped working is replaced, a bounded number of times; then somebody else is told."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable

from models.serving.supervisor import Supervisor

_PATIENCE_S = 30
_OFTEN_S = 0.001


class _Ward:
    """Models and what ails them; replacing one cures it unless it is said to fail."""

    def __init__(self, *, chronic: bool = False, incurable: bool = False) -> None:
        self.ill: dict[str, str] = {}
        self.replaced: queue.Queue[str] = queue.Queue()
        self.given_up: queue.Queue[str] = queue.Queue()
        self.looked = threading.Semaphore(0)
        self._chronic = chronic
        self._incurable = incurable

    def ailments(self) -> dict[str, str]:
        self.looked.release()
        return dict(self.ill)

    def replace(self, name: str) -> None:
        if self._incurable:
            raise RuntimeError("no file")
        if not self._chronic:
            del self.ill[name]
        self.replaced.put(name)

    def supervised(self, give_up: Callable[[str], None] | None = None) -> Supervisor:
        return Supervisor(
            self.ailments, self.replace, give_up or self.given_up.put, interval_s=_OFTEN_S, most_replacements=3
        )


def test_a_model_that_works_is_left_alone() -> None:
    ward = _Ward()
    supervisor = ward.supervised()
    for _ in range(5):
        assert ward.looked.acquire(timeout=_PATIENCE_S)
    supervisor.stop()
    assert ward.replaced.empty()


def test_a_model_that_stopped_is_replaced_once_and_others_are_not() -> None:
    ward = _Ward()
    supervisor = ward.supervised()
    ward.ill = {"a": "has hung for 61 s"}
    assert ward.replaced.get(timeout=_PATIENCE_S) == "a"
    for _ in range(5):
        assert ward.looked.acquire(timeout=_PATIENCE_S)
    supervisor.stop()
    assert ward.replaced.empty()
    assert ward.given_up.empty()


def test_after_three_replacements_it_gives_up_and_says_why() -> None:
    ward = _Ward(chronic=True)
    ward.ill = {"a": "has hung for 61 s"}
    ward.supervised()
    reason = ward.given_up.get(timeout=_PATIENCE_S)
    assert ward.replaced.qsize() == 3
    assert reason == "a has hung for 61 s, and was started anew 3 times already"


def test_a_model_that_cannot_be_started_anew_is_given_up_at_once_with_the_reason() -> None:
    ward = _Ward(incurable=True)
    ward.ill = {"a": "lost its thread"}
    ward.supervised()
    reason = ward.given_up.get(timeout=_PATIENCE_S)
    assert reason == "a lost its thread, and cannot be started anew: RuntimeError: no file"


def test_it_gives_up_once() -> None:
    ward = _Ward(chronic=True)
    ward.ill = {"a": "has hung for 61 s"}
    ended = threading.Event()

    def give_up(reason: str) -> None:
        ward.given_up.put(reason)
        ended.set()

    supervisor = ward.supervised(give_up)
    assert ended.wait(_PATIENCE_S)
    supervisor._thread.join(_PATIENCE_S)  # noqa: SLF001 - that the thread has ended is the point
    assert not supervisor._thread.is_alive()  # noqa: SLF001
    assert ward.given_up.qsize() == 1


def test_what_was_replaced_before_a_change_by_hand_counts_no_more() -> None:
    ward = _Ward(chronic=True)
    supervisor = ward.supervised(lambda _reason: ward.given_up.put("given up"))
    ward.ill = {"a": "has hung for 61 s"}
    for _ in range(2):
        ward.replaced.get(timeout=_PATIENCE_S)
    ward.ill = {}
    supervisor.forget("a")
    ward.ill = {"a": "has hung for 61 s"}
    assert ward.given_up.get(timeout=_PATIENCE_S) == "given up"
    # Three more, and one if the supervisor was at it when it was told to forget.
    assert ward.replaced.qsize() >= 3
