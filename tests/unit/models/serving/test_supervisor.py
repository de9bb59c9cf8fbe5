"""The supervisor restarts an unhealthy model a limited number of times; then it shuts the process down."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable

from models.serving.supervisor import Supervisor

_PATIENCE_S = 30
_INTERVAL_S = 0.001


class _Models:
    """Models and their health problems. A restart ends a problem, unless it fails or the problem persists."""

    def __init__(self, *, persistent: bool = False, restart_fails: bool = False) -> None:
        self.problems: dict[str, str] = {}
        self.restarted: queue.Queue[str] = queue.Queue()
        self.shut_down: queue.Queue[str] = queue.Queue()
        self.checked = threading.Semaphore(0)
        self._persistent = persistent
        self._restart_fails = restart_fails

    def health_problems(self) -> dict[str, str]:
        self.checked.release()
        return dict(self.problems)

    def restart(self, name: str) -> None:
        if self._restart_fails:
            raise RuntimeError("no file")
        if not self._persistent:
            del self.problems[name]
        self.restarted.put(name)

    def supervise(self, shut_down: Callable[[str], None] | None = None) -> Supervisor:
        return Supervisor(
            self.health_problems,
            self.restart,
            shut_down or self.shut_down.put,
            interval_s=_INTERVAL_S,
            max_restarts=3,
        )

    def wait_for_checks(self, count: int) -> None:
        for _ in range(count):
            assert self.checked.acquire(timeout=_PATIENCE_S)


def test_a_healthy_model_is_not_restarted() -> None:
    models = _Models()
    supervisor = models.supervise()
    models.wait_for_checks(5)
    supervisor.stop()
    assert models.restarted.empty()


def test_an_unhealthy_model_is_restarted_once() -> None:
    models = _Models()
    supervisor = models.supervise()
    models.problems = {"a": "has hung for 61 s"}
    assert models.restarted.get(timeout=_PATIENCE_S) == "a"
    models.wait_for_checks(5)
    supervisor.stop()
    assert models.restarted.empty()
    assert models.shut_down.empty()


def test_the_process_is_shut_down_after_three_restarts_of_one_model() -> None:
    models = _Models(persistent=True)
    models.problems = {"a": "has hung for 61 s"}
    models.supervise()
    reason = models.shut_down.get(timeout=_PATIENCE_S)
    assert models.restarted.qsize() == 3
    assert reason == "a has hung for 61 s, and was already restarted 3 times"


def test_the_process_is_shut_down_with_the_reason_if_a_restart_fails() -> None:
    models = _Models(restart_fails=True)
    models.problems = {"a": "lost its thread"}
    models.supervise()
    reason = models.shut_down.get(timeout=_PATIENCE_S)
    assert reason == "a lost its thread, and cannot be restarted: RuntimeError: no file"


def test_shut_down_is_called_once() -> None:
    models = _Models(persistent=True)
    models.problems = {"a": "has hung for 61 s"}
    called = threading.Event()

    def shut_down(reason: str) -> None:
        models.shut_down.put(reason)
        called.set()

    supervisor = models.supervise(shut_down)
    assert called.wait(_PATIENCE_S)
    supervisor._thread.join(_PATIENCE_S)  # noqa: SLF001 - the test is about the end of this thread
    assert not supervisor._thread.is_alive()  # noqa: SLF001
    assert models.shut_down.qsize() == 1


def test_restarts_before_a_load_by_the_operator_do_not_count() -> None:
    models = _Models(persistent=True)
    supervisor = models.supervise()
    models.problems = {"a": "has hung for 61 s"}
    for _ in range(2):
        models.restarted.get(timeout=_PATIENCE_S)
    models.problems = {}
    supervisor.forget("a")
    models.problems = {"a": "has hung for 61 s"}
    assert models.shut_down.get(timeout=_PATIENCE_S) == "a has hung for 61 s, and was already restarted 3 times"
    # Three more restarts, and one more if `forget` came in the middle of one.
    assert models.restarted.qsize() >= 3
