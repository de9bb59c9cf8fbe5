"""Short runs of two scenarios of `python -m reliability`: with HTTP workers each request gets its own answer."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import pytest

from observe.processes import gradless_process
from reliability.finding import Finding
from reliability.scale import Scale
from reliability.scenarios import own_answers, reloads


@pytest.mark.parametrize(
    ("measure", "seconds"),
    [
        pytest.param(reloads.measure, 8, id="while-a-model-is-reloaded"),
        pytest.param(own_answers.measure, 4, id="while-workers-are-killed"),
    ],
)
def test_each_request_gets_its_own_answer_while_other_clients_disconnect(
    measure: Callable[[Scale], Iterator[Finding]], seconds: float, warm_command: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("reliability.serving.gradless_process", partial(gradless_process, start=warm_command.start))
    assert [finding for finding in measure(Scale(seconds)) if not finding.met] == []
