"""The command behind the figures of docs/performance.md on the cost of metrics."""

from __future__ import annotations

import re
import subprocess
import sys
from itertools import pairwise

from benchmarks.metrics_cost import MODELS
from observe import ROOT


def test_it_prints_the_cost_of_a_scrape_by_number_of_models_and_of_a_request() -> None:
    command = [sys.executable, "-m", "benchmarks.metrics_cost", "--scrapes=20", "--requests=100", "--rounds=1"]
    message = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    rows = re.findall(r"^\| (\d+) \| ([\d,]+) \| \d+ \| ([\d.]+) \|$", message, re.MULTILINE)
    assert [int(models) for models, _, _ in rows] == list(MODELS)
    series = [int(count.replace(",", "")) for _, count, _ in rows]
    assert all(before < after for before, after in pairwise(series))
    assert all(float(milliseconds) > 0 for _, _, milliseconds in rows)
    share = re.search(r"^\| the share of the latter \| ([\d.]+) % \|$", message, re.MULTILINE)
    assert share
    assert 0 < float(share[1]) < 100
