"""A model whose code hangs while it is loaded does not block a real process."""

from __future__ import annotations

import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx2
import pytest


@pytest.mark.parametrize("workers", ["0", "1"])
def test_a_model_that_hangs_while_loading_blocks_neither_other_loads_nor_the_shutdown(
    start_server: Callable[..., Any], tmp_path: Path, clock_jpeg: bytes, workers: str
) -> None:
    (tmp_path / "hangs").mkdir()
    (tmp_path / "hangs" / "net.py").write_text("import time\ntime.sleep(3600)\n")
    (tmp_path / "hangs" / "model.toml").write_text('architecture = "net:build"\nweights = "random"\nclasses = 10\n')
    server = start_server(
        GRADLESS_MODELS="null",
        GRADLESS_MODELS_FOLDER=str(tmp_path),
        GRADLESS_LOAD_TIMEOUT_S="4",
        GRADLESS_HTTP_WORKERS=workers,
    )
    with httpx2.Client(base_url=server.address, timeout=60) as http:
        hangs = http.post("/v1/models/hangs", json={"source": "hangs"})
        assert hangs.status_code == 503, hangs.text
        assert hangs.json()["type"] == "urn:gradless:problem:load-timeout"
        assert "GRADLESS_LOAD_TIMEOUT_S" in hangs.json()["detail"]

        other = http.post("/v1/models/other", json={"source": "null"})
        assert other.status_code == 201, other.text
        assert http.post("/v1/classify?model=other", content=clock_jpeg).status_code == 200
        assert [model["name"] for model in http.get("/v1/models").json()["models"]] == ["null", "other"]
        assert http.get("/readyz").status_code == 200
    server.process.send_signal(signal.SIGTERM)
    assert server.exit_status() == 0
