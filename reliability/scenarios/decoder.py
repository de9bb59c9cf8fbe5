"""Mutated images, ten times as many as over HTTP, decoded without a server."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from typing import Any

from observe import ROOT
from reliability.finding import Finding, Scenario
from reliability.mutations import SEED
from reliability.scale import Scale

_IMAGES = 200_000
_PROCESSES = 2
# Less than 1 kB for each image of a run of 20 s.
_GROWTH_BAR_MB = 5.0
_SECONDS_AN_IMAGE = 0.05


def measure(scale: Scale) -> Iterator[Finding]:
    """Decode in separate processes, whose crash would be the finding."""
    each = scale.count(_IMAGES, least=2000) // _PROCESSES
    scenario = Scenario("decoder", f"{each * _PROCESSES:,} mutated images, without a server")
    commands = [
        [sys.executable, "-m", "reliability.decoding", "--seed", str(SEED + number), "--images", str(each)]
        for number in range(1, _PROCESSES + 1)
    ]
    running = [
        subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE)  # noqa: S603 - composed above
        for command in commands
    ]
    outputs = [process.communicate(timeout=60 + each * _SECONDS_AN_IMAGE)[0] for process in running]
    statuses = [process.returncode for process in running]
    yield scenario.finding(
        "the processes survive",
        f"status {', '.join(map(str, statuses))}",
        met=not any(statuses),
    )
    if any(statuses):
        return
    reports: list[dict[str, Any]] = [json.loads(output) for output in outputs]
    outcomes: Counter[str] = sum((Counter(report["outcomes"]) for report in reports), Counter())
    unexpected: Counter[str] = sum((Counter(report["unexpected"]) for report in reports), Counter())
    yield scenario.finding(
        "each is decoded or refused with an ImageError",
        f"{', '.join(f'{name}: {count:,}' for name, count in sorted(outcomes.items()))}; "
        f"others: {', '.join(f'{name}: {count}' for name, count in unexpected.items()) or 'none'}",
        met=not unexpected,
    )
    grown = max(report["grown_mb"] for report in reports)
    with_free = max(report["grown_with_free_mb"] for report in reports)
    yield scenario.finding(
        f"memory grows by ≤ {_GROWTH_BAR_MB:g} MB after the first quarter, without freed pages",
        f"{grown:+.1f} MB ({with_free:+.1f} MB with them)",
        met=grown <= _GROWTH_BAR_MB,
    )
