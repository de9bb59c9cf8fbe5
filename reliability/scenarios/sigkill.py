"""SIGKILL, under load and in the middle of the first start, which converts the model: the next start needs no help."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from statistics import median
from time import perf_counter

from observe.processes import free_port
from reliability.callers import calling, first_answer_ms
from reliability.finding import Finding, Scenario
from reliability.pictures import draw_pictures
from reliability.scale import Scale
from reliability.serving import DEFAULT_MODEL, Served, serving
from reliability.wire import CLASSIFY, Request, post

_UNDER_LOAD = 3
_CALLERS = 8
_LOAD_S = 1.0
# Moments of a start that converts: libraries, weights, conversion, what is written of it.
_INTO_START_S = (3.0, 5.0, 7.0, 9.0, 11.0)


def measure(scale: Scale) -> Iterator[Finding]:
    """One port and one cache folder for all of it, as where a service manager starts it again."""
    request = post(CLASSIFY, draw_pictures().clock)
    settings = {"GRADLESS_PORT": str(free_port())}
    with tempfile.TemporaryDirectory(prefix="gradless-cache-") as cache:
        settings["GRADLESS_CACHE_FOLDER"] = cache
        moments = _INTO_START_S[: scale.count(len(_INTO_START_S), least=2)]
        for moment in moments:
            _kill_a_start(settings, moment)
        first_s = _ready_s(settings, request)
        seconds = [_ready_s(settings, request) for _ in range(scale.count(_UNDER_LOAD, least=2))]
        last_s = _ready_s(settings, request)
    yield Scenario("sigkill", f"SIGKILL {len(moments)} times within the first start, at {_told(moments)} s").finding(
        "ready again, with no step by hand", f"ready and answering after {first_s:.1f} s", met=True
    )
    yield Scenario("sigkill", f"SIGKILL under load, {len(seconds) + 1} times, same port and cache").finding(
        "ready again, with no step by hand",
        f"ready and answering after {median([*seconds, last_s]):.1f} s (longest {max(*seconds, last_s):.1f} s)",
        met=True,
    )


def _ready_s(settings: dict[str, str], request: Request) -> float:
    """How long a start takes until the first good answer; then SIGKILL under load. A start that fails, or answers
    otherwise, raises: there is nothing to measure after it."""
    began = perf_counter()
    with serving(DEFAULT_MODEL, **settings) as served:
        asyncio.run(first_answer_ms(served.place, request))
        seconds = perf_counter() - began
        asyncio.run(_kill_under_load(served, request))
    return seconds


async def _kill_under_load(served: Served, request: Request) -> None:
    async with calling(served.place, [request] * _CALLERS):
        await asyncio.sleep(_LOAD_S)
        served.process.kill()
        await asyncio.to_thread(served.process.wait)


def _kill_a_start(settings: dict[str, str], moment_s: float) -> None:
    command = [str(Path(sys.executable).parent / "gradless"), "serve"]
    environment = {"GRADLESS_MODELS": DEFAULT_MODEL, **settings}
    with subprocess.Popen(  # noqa: S603 - composed above
        command,
        env={**os.environ, **environment},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    ) as process:
        time.sleep(moment_s)
        process.kill()


def _told(moments: tuple[float, ...]) -> str:
    return ", ".join(f"{moment:g}" for moment in moments)
