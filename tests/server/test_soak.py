"""Six seconds of what `make soak` does for thirty minutes."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest

from observe.processes import gradless_process
from reliability.soak import soak


def test_clients_of_every_kind_leave_nothing_behind_and_lose_no_request(
    warm_command: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("reliability.serving.gradless_process", partial(gradless_process, start=warm_command.start))
    assert [finding for finding in soak(minutes=0.1) if not finding.met] == []
