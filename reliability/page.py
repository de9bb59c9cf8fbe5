"""docs/reliability.md, from what a run has measured."""

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

_PACKAGES = ("gradless", "torch", "openvino", "fastapi", "uvicorn", "uvloop", "pillow", "simplejpeg")

_INTRODUCTION = """# Reliability

A service that decodes other people's files meets callers who leave, dawdle, send rubbish or come all at once, and is
itself stopped, killed and started again. Each row below is one bar, held against a real `gradless serve` on 127.0.0.1
with default settings, by `python -m reliability`, which wrote this page; what was missed stands here too. Three
scenarios have several HTTP processes (`GRADLESS_HTTP_WORKERS=2`) and the `null` model, whose answer tells which image
it is of: `reloads` replaces the model while clients disconnect, `own-answers` kills HTTP processes under load, and
`killed-processes` kills each kind of process in turn. `damaged-cache` damages the converted network on disk between
starts, and compares the answers.

Some of it has been measured elsewhere, for comparison: one bad image in a burst of 16 failed 3 to 14 of its 15
neighbours in LitServe and 3 to 15 in MLServer; after 200 clients hung up, the first good answer took 6 to 10 s in
LitServe, BentoML, MLServer and plain FastAPI (measured on a like machine).
"""

_LIMITS = """## Known limits

- Load and server share the same cores, and other work may be on them. Under overload both cores are full, and what
  refusals take, ten or more for each answer, is missing from forwards: 0.2 cores for them, 0.1 for the load. The latter
  alone is over the twentieth that the bar leaves.
  The next batch is in line before the last is done, so that the forwards' threads never idle, and a refusal comes when
  the event loop has got hold of a core, where their lower priority helps. Of the load's process the same is true.
- The heap keeps what is freed for the next forward (`models/hardware/memory.py`), and grows under overload in steps,
  ever fewer. After 10, 15 and 15 s of overload on one server it was 1,121, 1,137 and 1,151 MB, and with what was free
  given back 1,015, 1,018 and 1,021 MB.
- Beside slow connections p99 was 73 to 75 ms in three runs and 65 to 67 alone, which misses the bar, and 87 ms each way
  in one of a busier hour. Their client, which sends 200 bytes a second and connects anew what is closed, works on the
  same cores.
- After two hundred hang-ups the next request waits for the event loop, which takes some 0.2 ms for each of them. Of
  their images hardly any comes to a forward; of one that all have left only the pieces under way are done.
- The bound of the accepted requests' wait leaves no room: with all places taken the average wait is the number of
  places over the goodput already.
- Latencies are those of a process's own loopback; no network, proxy or TLS is between.
- A connection that asks for nothing is closed after `GRADLESS_READ_TIMEOUT_S`; the number of connections itself is
  bounded by the process's file descriptors alone. Put a proxy in front where strangers can connect.
- A stop resets no connection that was made, as far as Linux tells: those under way have 0.3 s to complete. A client
  farther away than that, or in a sandbox whose kernel ignores socket filters, may still be reset. So may one that sends
  its first byte more than half a second after the stop began.
- What is measured is one process on CPUs, but for `reloads`, `own-answers` and `killed-processes`. A GPU's faults are
  not among the scenarios.
- `make soak MINUTES=30` mixes all kinds of callers for as long as wanted; its findings are printed, and not on this
  page. A test runs it for a minute.
"""


def page(findings: Sequence[Finding], command: str, load_before: float) -> str:
    """All of it."""
    rows = [
        (
            finding.scenario,
            finding.load,
            finding.bar,
            finding.measured,
            f"`python -m reliability --only {finding.scenario}`",
            "yes" if finding.met else "**missed**",
        )
        for finding in findings
    ]
    missed = sum(not finding.met for finding in findings)
    lines = [
        _INTRODUCTION,
        *table(("scenario", "load", "bar", "measured", "command", "met?"), rows),
        "",
        f"{len(findings) - missed} of {len(findings)} bars met. `{command}`, {dt.datetime.now(dt.UTC):%Y-%m-%d};",
        f"{processor()}, {os.cpu_count()} cores that others may use as well (load average before: {load_before:.1f}),",
        f"{psutil.virtual_memory().total / 2**30:.0f} GiB; {platform.system()} {platform.release().partition('-')[0]},",
        f"Python {sys.version.split()[0]},",
        f"{', '.join(f'{package} {version(package)}' for package in _PACKAGES)}.",
        "",
        _LIMITS,
    ]
    return "\n".join(lines)
