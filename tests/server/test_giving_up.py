"""A model that stops repeatedly ends the process with its reason, so that the orchestrator restarts it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import httpx2


def test_after_three_replacements_the_process_ends_with_status_1_and_its_reason(
    start_server: Callable[..., Any], clock_jpeg: bytes
) -> None:
    # So short that every batch of this network counts as hung.
    server = start_server(
        GRADLESS_MODELS="mobilenet_v3_large:random",
        GRADLESS_BACKEND="eager",
        GRADLESS_FORWARD_TIMEOUT_S="0.01",
    )
    pictures = [("images", ("clock.jpg", clock_jpeg))] * 64
    statuses = set()
    with httpx2.Client(base_url=server.address, timeout=60) as client:
        try:
            while server.process.poll() is None:
                statuses.add(client.post("/v1/features?encoding=base64", files=pictures).status_code)
        except httpx2.TransportError:
            # It has closed its door.
            pass
    assert server.exit_status() == 1
    assert statuses <= {200, 503}
    log = "".join(server.log)
    assert "restarting it (3 of 3)" in log
    assert "shutting down: mobilenet_v3_large:random has run one forward for" in log
    assert "ended: mobilenet_v3_large:random" in log
