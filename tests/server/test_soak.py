"""Six seconds of what `make soak` does for thirty minutes, with a smaller network."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest

from observe.processes import Running, gradless_process
from reliability.soak import soak

MODEL = "shufflenet_v2_x0_5:random"


def test_clients_of_every_kind_leave_nothing_behind_and_lose_no_request(
    warm_command: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def start(folder: Path, settings: Mapping[str, str]) -> AbstractContextManager[Running]:
        return gradless_process(folder, {**settings, "GRADLESS_BACKEND": "eager"}, start=warm_command.start)

    monkeypatch.setattr("reliability.serving.gradless_process", start)
    for module in ("reliability.soak", "reliability.crowd"):
        monkeypatch.setattr(f"{module}.DEFAULT_MODEL", MODEL)
    assert [finding for finding in soak(minutes=0.1) if not finding.met] == []
