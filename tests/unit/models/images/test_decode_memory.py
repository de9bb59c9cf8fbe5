"""Expensive decodes of all processes share one budget of memory."""

from __future__ import annotations

import multiprocessing
import os
import queue
import signal
import threading
from collections.abc import Iterator
from multiprocessing.connection import Connection
from multiprocessing.reduction import DupFd
from typing import Any

import pytest

from models.images.decode_memory import DecodeMemory
from models.interface.request import NEVER_CANCELLED, CancelToken

_MIB = 2**20
_PATIENCE_S = 60


@pytest.fixture
def memory() -> Iterator[DecodeMemory]:
    made = DecodeMemory(64 * _MIB)
    yield made
    made.close()


_CANCELLED = CancelToken()
_CANCELLED.cancel()


def _reserve_in_thread(memory: DecodeMemory, count: int, log: queue.Queue[str], name: str) -> threading.Event:
    """Reserve in a thread, append to the log, and release once the event is set."""
    release = threading.Event()

    def reserve() -> None:
        with memory.reserved(count, NEVER_CANCELLED):
            log.put(name)
            assert release.wait(_PATIENCE_S)

    threading.Thread(target=reserve, daemon=True).start()
    return release


def test_decodes_that_fit_together_run_together(memory: DecodeMemory) -> None:
    with memory.reserved(32 * _MIB, NEVER_CANCELLED) as first, memory.reserved(32 * _MIB, NEVER_CANCELLED) as second:
        assert first
        assert second


def test_a_decode_that_exceeds_the_budget_waits_until_memory_is_free(memory: DecodeMemory) -> None:
    log: queue.Queue[str] = queue.Queue()
    with memory.reserved(40 * _MIB, NEVER_CANCELLED):
        release = _reserve_in_thread(memory, 40 * _MIB, log, "second")
        with pytest.raises(queue.Empty):
            log.get(timeout=0.1)
    assert log.get(timeout=_PATIENCE_S) == "second"
    release.set()


def test_small_reservations_do_not_overtake_a_large_one(memory: DecodeMemory) -> None:
    log: queue.Queue[str] = queue.Queue()
    with memory.reserved(40 * _MIB, NEVER_CANCELLED):
        large_looks = threading.Event()

        class Looks(CancelToken):
            @property
            def cancelled(self) -> bool:
                large_looks.set()
                return False

        def reserve_large() -> None:
            with memory.reserved(64 * _MIB, Looks()):
                log.put("large")

        threading.Thread(target=reserve_large, daemon=True).start()
        assert large_looks.wait(_PATIENCE_S)
        release = _reserve_in_thread(memory, _MIB, log, "small")
        with pytest.raises(queue.Empty):
            log.get(timeout=0.1)
    assert [log.get(timeout=_PATIENCE_S), log.get(timeout=_PATIENCE_S)] == ["large", "small"]
    release.set()


def test_a_cancelled_decode_stops_waiting_for_memory(memory: DecodeMemory) -> None:
    with memory.reserved(64 * _MIB, NEVER_CANCELLED), memory.reserved(_MIB, _CANCELLED) as held:
        assert not held
    with memory.reserved(64 * _MIB, NEVER_CANCELLED) as held:
        assert held


def _hold(duplicate: Any, ready: Connection) -> None:
    memory = DecodeMemory(64 * _MIB, duplicate.detach())
    with memory.reserved(64 * _MIB, NEVER_CANCELLED):
        ready.send("held")
        ready.recv()


def test_another_process_has_the_same_budget_and_gives_it_back_when_it_is_killed(memory: DecodeMemory) -> None:
    ours, its = multiprocessing.Pipe()
    process = multiprocessing.get_context("spawn").Process(target=_hold, args=(DupFd(memory._descriptor), its))  # noqa: SLF001
    process.start()
    assert ours.recv() == "held"
    log: queue.Queue[str] = queue.Queue()
    release = _reserve_in_thread(memory, _MIB, log, "here")
    with pytest.raises(queue.Empty):
        log.get(timeout=0.1)
    assert process.pid is not None
    os.kill(process.pid, signal.SIGKILL)
    assert log.get(timeout=_PATIENCE_S) == "here"
    release.set()
    process.join(_PATIENCE_S)
