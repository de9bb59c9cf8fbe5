"""Time from the start of a process to ready: gradless's default with an empty cache folder and with a filled one, and
its imports.
"""

from __future__ import annotations

import json
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import replace

from benchmarks.bench import ROOT, Bench
from benchmarks.measurement import Measurement
from benchmarks.processes import seconds_to_ready
from benchmarks.servers import DEFAULT, MODELS, SERVERS

# One after another in a new process, each without the imports of those before it.
IMPORTS = ("torch", "torchvision", "timm")
_IMPORTING = f"""
import importlib, json, time
seconds = {{}}
for name in {IMPORTS!r}:
    before = time.perf_counter()
    importlib.import_module(name)
    seconds[name] = time.perf_counter() - before
print(json.dumps(seconds))
"""


def measure(number: int, bench: Bench) -> Iterator[Measurement]:
    """Measure one first start, one later start and the imports. Raises ServerFailedError."""
    with tempfile.TemporaryDirectory(prefix="bench-cache-") as cache:
        # Otherwise the default model and configuration.
        spec = replace(SERVERS[DEFAULT], name="gradless starts", environment={"GRADLESS_CACHE_FOLDER": cache})
        figures = {f"{start}_s": seconds_to_ready(spec, MODELS[0], bench) for start in ("first", "later")}
    figures |= {f"import_{name}_s": seconds for name, seconds in _import_seconds(bench).items()}
    yield Measurement(kind="start", server="gradless", model=MODELS[0], round=number, figures=figures)


def _import_seconds(bench: Bench) -> dict[str, float]:
    done = subprocess.run(  # noqa: S603 - ours
        [str(bench.project_python), "-W", "ignore", "-c", _IMPORTING],
        cwd=ROOT,
        check=True,
        capture_output=True,
        text=True,
    )
    seconds: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return seconds
