"""SIGKILL under load and during the first start: the next start needs no manual step."""

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
from reliability.clients import first_answer_ms, running_clients
from reliability.finding import Finding, Scenario
from reliability.pictures import draw_pictures
from reliability.scale import Scale
from reliability.serving import DEFAULT_MODEL, Served, serving
from reliability.wire import CLASSIFY, Request, post

_UNDER_LOAD = 3
_CLIENTS = 8
_LOAD_S = 1.0
# Moments of a converting start: import of libraries, weights, conversion, writing the cache.
_INTO_START_S = (3.0, 5.0, 7.0, 9.0, 11.0)


def measure(scale: Scale) -> Iterator[Finding]:
    """Use one port and one cache folder throughout, as a service manager would."""
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
    yield Scenario("sigkill", f"SIGKILL {len(moments)} times during the first start, at {_joined(moments)} s").finding(
        "ready again without a manual step", f"ready and answering after {first_s:.1f} s", met=True
    )
    yield Scenario("sigkill", f"SIGKILL under load, {len(seconds) + 1} times, same port and cache").finding(
        "ready again without a manual step",
        f"ready and answering after {median([*seconds, last_s]):.1f} s (longest {max(*seconds, last_s):.1f} s)",
        met=True,
    )


def _ready_s(settings: dict[str, str], request: Request) -> float:
    """Return the seconds from a start to its first answer, then kill the server under load.

    A start that fails, or a first status other than 200, raises.
    """
    began = perf_counter()
    with serving(DEFAULT_MODEL, **settings) as served:
        asyncio.run(first_answer_ms(served.address, request))
        seconds = perf_counter() - began
        asyncio.run(_kill_under_load(served, request))
    return seconds


async def _kill_under_load(served: Served, request: Request) -> None:
    async with running_clients(served.address, [request] * _CLIENTS):
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


def _joined(moments: tuple[float, ...]) -> str:
    return ", ".join(f"{moment:g}" for moment in moments)
