"""The pages of a run: reliability/results.md has every finding, docs/reliability.md sums them up."""

from __future__ import annotations

import datetime as dt
import os
import platform
import sys
from collections import defaultdict
from collections.abc import Mapping, Sequence
from importlib.metadata import version

import psutil

from benchmarks.machine import processor
from benchmarks.markdown import table
from reliability.finding import Finding

_PACKAGES = ("gradless", "torch", "openvino", "fastapi", "uvicorn", "uvloop", "grpcio", "pillow", "simplejpeg")

_INTRODUCTION = """# Reliability

`python -m reliability` runs these scenarios against a real `gradless serve` on 127.0.0.1, `--only SCENARIO` one.
[results.md](../reliability/results.md) has their loads, bars (thresholds) and measured values. A soak of 30 minutes
(`make soak`, 2026-11-24) accounted for all of 202,019 requests, and memory did not grow.
"""

_LIMITS = """## Known limits

- Load and server share the cores: under overload refusals take 0.2 cores, the load 0.1.
- With a full queue the mean wait alone reaches the bar for p99.
- Freed memory is kept for the next forward. In a `fuzz` of 80,000 images memory grew by 0.7 MB after the first 20,000.
- Each disconnect takes some 0.2 ms of the event loop, which the next request waits for.
- `slowloris` misses its bar in some runs (73 to 75 ms against 65 to 67).
- Networks, proxies, TLS and faults of GPUs are not among the scenarios.
- Only the limit on file descriptors bounds the number of connections: put a proxy in front where strangers can connect.
- On Linux a stop resets only connections that need more than 0.3 s to be established, or more than 0.5 s to send their
  first byte.
"""


def results(findings: Sequence[Finding], command: str, load_before: float) -> str:
    """Return the page with every finding. A scenario's name and load stand in its first row only."""
    rows, shown = [], ""
    for finding in findings:
        title = f"**{finding.scenario}**: {finding.load}"
        rows.append(
            (title if title != shown else "", finding.bar, finding.measured, "yes" if finding.met else "**no**")
        )
        shown = title
    lines = [
        "# Results of the reliability scenarios",
        "",
        *table(("scenario and load", "bar", "measured", "met"), rows),
        "",
        f"`{command}`, {_when_and_where()} (load average before: {load_before:.1f}),",
        f"{psutil.virtual_memory().total / 2**30:.0f} GiB; {platform.system()} {platform.release().partition('-')[0]},",
        f"Python {sys.version.split()[0]},",
        f"{', '.join(f'{package} {version(package)}' for package in _PACKAGES)}.",
        "",
    ]
    return "\n".join(lines)


def summary(findings: Sequence[Finding], about: Mapping[str, str]) -> str:
    """Return the page for readers. `about` has a line on each scenario; those with the same line share an item."""
    names: dict[str, dict[str, None]] = defaultdict(dict)
    for finding in findings:
        names[about[finding.scenario]][f"`{finding.scenario}`"] = None
    missed = [f"- `{one.scenario}`: {one.bar}; measured: {one.measured}" for one in findings if not one.met]
    lines = [
        _INTRODUCTION,
        *(f"- {', '.join(each)}: {line}" for line, each in names.items()),
        "",
        f"{len(findings) - len(missed)} of {len(findings)} bars were met, {_when_and_where()}. Missed:",
        "",
        *(missed or ["- none"]),
        "",
        _LIMITS,
    ]
    return "\n".join(lines)


def _when_and_where() -> str:
    return f"{dt.datetime.now(dt.UTC):%Y-%m-%d}; {processor()}, {os.cpu_count()} shared cores"
