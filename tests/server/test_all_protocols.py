"""Short runs of the scenarios of `python -m reliability` that send all protocols."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import pytest

from observe.processes import gradless_process

pytest.importorskip("grpc")

from reliability.finding import Finding
from reliability.scale import Scale
from reliability.scenarios import protocol_fuzz, protocols, sigterm

LEAST = Scale(0.5, sigterms=2)


@pytest.mark.parametrize(
    "measure",
    [
        pytest.param(protocols.measure, id="each-request-gets-its-own-answer-and-is-counted-once"),
        pytest.param(protocols.measure_overload, id="refusals-have-the-form-of-their-protocol"),
        pytest.param(sigterm.measure_protocols, id="a-stop-loses-no-request"),
        pytest.param(protocol_fuzz.measure, id="changed-requests-get-documented-statuses"),
    ],
)
def test_all_protocols_at_once(
    measure: Callable[[Scale], Iterator[Finding]], warm_command: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("reliability.serving.gradless_process", partial(gradless_process, start=warm_command.start))
    for scenario in (protocols, protocol_fuzz):
        monkeypatch.setattr(scenario, "WORKERS", ("2",))
    # Bodies take longer on a busy machine: half the bytes, and no limit on the time.
    monkeypatch.setattr("reliability.enormous._MUCH", 30_000_000)
    monkeypatch.setattr(protocol_fuzz, "_AT_ONCE_S", 30.0)
    # Decoders start after the few requests that memory counts from.
    monkeypatch.setattr(protocol_fuzz, "_GROWTH_BAR_MB", 150.0)
    assert [finding for finding in measure(LEAST) if not finding.met] == []
