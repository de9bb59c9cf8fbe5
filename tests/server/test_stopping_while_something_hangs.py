"""SIGTERM ends a process with a hanging load or forward within about its drain timeout."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Callable
from pathlib import Path
from time import monotonic, sleep
from typing import Any

import httpx2
import pytest

_DRAIN_S = 2
# With the allowance for a busy machine it is less than the default of the drain timeout.
_END_S = 25

# Locking a mutex twice hangs in native code, where no Python signal handler runs.
_HANG = """
import ctypes
def hang_in_native_code():
    print("hangs", flush=True)
    mutex = ctypes.create_string_buffer(64)
    for _ in range(2):
        ctypes.CDLL(None).pthread_mutex_lock(mutex)
"""

_HANGING_LOAD = (
    _HANG
    + """
import models.serving.model_instance
def hang(*_, **_options):
    if {when}:
        hang_in_native_code()
    return real(*_, **_options)
real, models.serving.model_instance.load = models.serving.model_instance.load, hang
"""
)

# Hangs in one forward after SIGUSR1.
_HANGING_FORWARD = (
    _HANG
    + """
import models.backends.pytorch
def hang(*given):
    if triggered.is_set():
        triggered.clear()
        hang_in_native_code()
    return real(*given)
real, models.backends.pytorch.NullBackend.run = models.backends.pytorch.NullBackend.run, hang
"""
)


def _end_in_time(server: Any) -> int:
    server.process.terminate()
    stopped_at = monotonic()
    status: int = server.exit_status()
    assert monotonic() - stopped_at < _END_S
    return status


@pytest.mark.parametrize("workers", ["0", "2"])
def test_sigterm_ends_a_process_whose_first_load_hangs(
    server_environment: Callable[..., dict[str, str]], warm_command: Any, workers: str
) -> None:
    command = [Path(__file__).with_name("patched_serve.py"), workers, _HANGING_LOAD.format(when=True)]
    reading, writing = os.pipe()
    with os.fdopen(reading) as output:
        with os.fdopen(writing, "w") as written:
            process = warm_command.start(command, server_environment(GRADLESS_MODELS="null"), written)
        with process:
            try:
                assert "hangs\n" in output
                process.terminate()
                assert process.wait(_END_S) == 0
            finally:
                process.kill()


@pytest.mark.parametrize("workers", ["0", "2"])
def test_sigterm_ends_a_process_with_a_hanging_load_request(start_patched: Callable[..., Any], workers: str) -> None:
    patch = _HANGING_LOAD.format(when="triggered.is_set()")
    server = start_patched(workers, patch, GRADLESS_DRAIN_TIMEOUT_S=str(_DRAIN_S))
    server.process.send_signal(signal.SIGUSR1)
    loading = _post_in_thread(f"{server.address}/v1/models/null")
    server.wait_for_line("hangs")

    assert _end_in_time(server) == 1
    loading.join()
    server.end_of_output()
    assert "still running when the time to drain was over" in "".join(server.log)


@pytest.mark.parametrize("workers", ["0", "2"])
def test_sigterm_ends_a_process_with_a_thread_in_an_abandoned_forward(
    start_patched: Callable[..., Any], clock_jpeg: bytes, workers: str
) -> None:
    server = start_patched(
        workers, _HANGING_FORWARD, GRADLESS_DRAIN_TIMEOUT_S=str(_DRAIN_S), GRADLESS_FORWARD_TIMEOUT_S="4"
    )
    server.process.send_signal(signal.SIGUSR1)
    classifying = _post_in_thread(f"{server.address}/v1/classify", clock_jpeg)
    server.wait_for_line("hangs")
    # The lens waits behind the forward.
    comparing = _post_in_thread(f"{server.address}/debug/grad-modes?batch_size=1")
    server.wait_for_line("restarting it")
    for request in (classifying, comparing):
        request.join()
    # While the model restarts, requests are answered with 503.
    while httpx2.post(f"{server.address}/v1/classify", content=clock_jpeg).status_code != 200:
        sleep(0.02)

    assert _end_in_time(server) == 0


def _post_in_thread(address: str, content: bytes = b"") -> threading.Thread:
    """Send a request from a thread, and ignore its response."""

    def post() -> None:
        with contextlib.suppress(httpx2.TransportError):
            httpx2.post(address, content=content, timeout=60)

    thread = threading.Thread(target=post)
    thread.start()
    return thread
