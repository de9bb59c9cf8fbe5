"""Write docs/reliability.md from the findings of a run."""

from __future__ import annotations

import datetime as dt
import os
import platform
import sys
from collections.abc import Sequence
from importlib.metadata import version

import psutil

from benchmarks.machine import processor
from benchmarks.markdown import table
from reliability.finding import Finding

_PACKAGES = ("gradless", "torch", "openvino", "fastapi", "uvicorn", "uvloop", "grpcio", "pillow", "simplejpeg")

_INTRODUCTION = """# Reliability

Each row is a bar (a threshold) that `python -m reliability` measured on a real `gradless serve` with default settings
and the default or the `null` model, on 127.0.0.1. `python -m reliability --only SCENARIO` repeats a scenario. Bars that
were missed are listed too.
"""

_LIMITS = """## Known limits

- Load and server share the same cores. Under overload refusals take 0.2 cores and the load 0.1, which forwards lack.
- With a full queue the mean wait is already its capacity over the goodput, so the bar for p99 leaves no margin.
- The heap keeps freed memory for the next forward and grows in ever smaller steps. `fuzz` grows by 3 MB without AVIFs;
  with them and 80,000 images, by 0.7 MB after the first 20,000. No decode of an AVIF leaves memory in use.
- After 200 disconnects the next request waits for the event loop, which takes some 0.2 ms for each.
- The bar of `slowloris` is missed in some runs (73 to 75 ms against 65 to 67 alone); its clients share the cores too.
- Latencies are those of the loopback interface, without network, proxy or TLS.
- Only the limit on file descriptors bounds the number of connections: put a proxy in front where strangers can connect.
- On Linux a stop resets no established connection; those being established have 0.3 s to complete. Clients that need
  longer, or send their first byte more than 0.5 s after the stop began, may be reset.
- Faults of GPUs are not among the scenarios.
- On a similar machine, one bad image in a burst of 16 failed 3 to 14 of the 15 others in LitServe and 3 to 15 in
  MLServer. After 200 disconnects, the next answer took 6 to 10 s in LitServe, BentoML, MLServer and plain FastAPI.
"""


def page(findings: Sequence[Finding], command: str, load_before: float) -> str:
    """Return the page. A scenario's name and load stand in its first row only."""
    rows, shown = [], ""
    for finding in findings:
        title = f"**{finding.scenario}**: {finding.load}"
        rows.append(
            (title if title != shown else "", finding.bar, finding.measured, "yes" if finding.met else "**no**")
        )
        shown = title
    missed = sum(not finding.met for finding in findings)
    lines = [
        _INTRODUCTION,
        *table(("scenario and load", "bar", "measured", "met"), rows),
        "",
        f"{len(findings) - missed} of {len(findings)} bars met. `{command}`, {dt.datetime.now(dt.UTC):%Y-%m-%d};",
        f"{processor()}, {os.cpu_count()} shared cores (load average before: {load_before:.1f}),",
        f"{psutil.virtual_memory().total / 2**30:.0f} GiB; {platform.system()} {platform.release().partition('-')[0]},",
        f"Python {sys.version.split()[0]},",
        f"{', '.join(f'{package} {version(package)}' for package in _PACKAGES)}.",
        "",
        _LIMITS,
    ]
    return "\n".join(lines)
