"""A model that stops repeatedly ends the process with its reason, so that the orchestrator restarts it."""

from __future__ import annotations

import signal
from collections.abc import Callable
from contextlib import suppress
from time import sleep
from typing import Any

import httpx2


def test_after_three_replacements_the_process_ends_with_status_1_and_its_reason(
    start_holding: Callable[..., Any], clock_jpeg: bytes
) -> None:
    server = start_holding(GRADLESS_FORWARD_TIMEOUT_S="1")
    with httpx2.Client(base_url=server.address) as client:
        for attempt in range(1, 4):
            server.process.send_signal(signal.SIGUSR1)
            assert client.post("/v1/classify", content=clock_jpeg).status_code == 503
            server.wait_for_line(rf"restarting it \({attempt} of 3\)")
            server.process.send_signal(signal.SIGUSR2)
            while client.get("/readyz").status_code != 200:
                sleep(0.02)
        server.process.send_signal(signal.SIGUSR1)
        # It may have ended before it answers.
        with suppress(httpx2.TransportError):
            assert client.post("/v1/classify", content=clock_jpeg).status_code == 503
    server.wait_for_line("shutting down: null has run one forward for")
    server.process.send_signal(signal.SIGUSR2)
    assert server.exit_status() == 1
    server.end_of_output()
    assert "ended: null" in "".join(server.log)
