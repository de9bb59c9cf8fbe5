"""The command behind the figures of docs/performance.md on the cost of metrics."""

from __future__ import annotations

import re
from functools import partial
from itertools import pairwise
from typing import Any

import pytest

from benchmarks import metrics_cost
from observe.processes import gradless_process


def test_it_prints_the_cost_of_a_scrape_by_number_of_models_and_of_a_request(
    warm_command: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(metrics_cost, "gradless_process", partial(gradless_process, start=warm_command.start))
    monkeypatch.setattr(metrics_cost, "_RECORDINGS", 2000)
    monkeypatch.setattr(metrics_cost, "MODELS", (1, 2))
    metrics_cost.main(["--scrapes=10", "--requests=50", "--rounds=1"])
    message = capsys.readouterr().out
    rows = re.findall(r"^\| (\d+) \| ([\d,]+) \| \d+ \| ([\d.]+) \|$", message, re.MULTILINE)
    assert [int(models) for models, _, _ in rows] == [1, 2]
    series = [int(count.replace(",", "")) for _, count, _ in rows]
    assert all(before < after for before, after in pairwise(series))
    assert all(float(milliseconds) > 0 for _, _, milliseconds in rows)
    share = re.search(r"^\| the share of the latter \| ([\d.]+) % \|$", message, re.MULTILINE)
    assert share
    assert 0 < float(share[1]) < 100
