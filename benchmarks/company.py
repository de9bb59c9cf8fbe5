"""What a light model suffers beside a heavy one on the same device: `python -m benchmarks.company`. In one process and
without HTTP; the ways in turns, so that what slowed one slowed the others. Prints a table.

Each model has a turn of its own, as served, and the system shares the cores out; or all have one turn, a whole forward
in order of arrival, which is the other way that there is.
"""

from __future__ import annotations

import argparse
import asyncio
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from time import perf_counter
from typing import NamedTuple

from benchmarks.markdown import over_rounds, table
from benchmarks.statistic import latency_summary
from models.images.samples import draw, encode
from models.interface.request import InferenceRequest
from models.interface.telemetry import Telemetry
from models.scheduling.fairness import FairLock
from models.serving.runtime import LocalRuntime, ServingOptions

_SIZE = (500, 375)

# Far beyond any wait of a heavy model's callers: none of them is to give up.
_DEADLINE_S = 600.0


class Way(NamedTuple):
    """How many ask for the heavy model, and whether it has one turn with the light one."""

    title: str
    heavy_callers: int
    one_turn: bool


WAYS = (
    Way("alone", 0, one_turn=False),
    Way("beside it, own turns", 32, one_turn=False),
    Way("beside it, one turn", 32, one_turn=True),
)


class Seen(NamedTuple):
    """Of one way in one round."""

    light_per_second: float
    light_p50_ms: float
    light_p99_ms: float
    heavy_per_second: float


class _OneAtATime(FairLock):
    """Not even batches of one model share it."""

    @contextmanager
    def shared(self) -> Iterator[None]:
        with self:
            yield


class Company:
    """Two models served, and callers in closed loops."""

    def __init__(self, light: str, heavy: str, *, backend: str) -> None:
        self._light, self._heavy = light, heavy
        options = ServingOptions(models=[light, heavy], backend=backend, deadline_s=_DEADLINE_S)
        self.serving = LocalRuntime(options, Telemetry())
        self._picture = encode(draw("clock").resize(_SIZE), "JPEG")

    async def seen(self, way: Way, *, light_callers: int, seconds: float) -> Seen:
        """Wait for `seconds`, and for what is under way then."""
        turn = _OneAtATime()
        for served in self.serving._registry.instances.values():  # noqa: SLF001 - nobody else exchanges turns
            served.engine.lock = turn if way.one_turn else FairLock()
        started_at = perf_counter()
        light: list[float] = []
        heavy: list[float] = []
        async with asyncio.TaskGroup() as callers:
            for _ in range(light_callers):
                callers.create_task(self._caller(self._light, started_at + seconds, light))
            for _ in range(way.heavy_callers):
                callers.create_task(self._caller(self._heavy, started_at + seconds, heavy))
        elapsed = perf_counter() - started_at
        latency = latency_summary(light)
        return Seen(len(light) / elapsed, latency["p50_ms"], latency["p99_ms"], len(heavy) / elapsed)

    async def _caller(self, model: str, until: float, latencies_ms: list[float]) -> None:
        while (asked_at := perf_counter()) < until:
            await self.serving.predict(model, InferenceRequest("classify", [self._picture], top_k=1))
            latencies_ms.append((perf_counter() - asked_at) * 1e3)


async def measure(company: Company, *, light_callers: int, seconds: float, rounds: int) -> list[str]:
    """The lines of the table."""
    found: dict[Way, list[Seen]] = defaultdict(list)
    for _ in range(rounds):
        for way in WAYS:
            found[way].append(await company.seen(way, light_callers=light_callers, seconds=seconds))
    return table(
        ("the light model", "its images/s", "its p50 ms", "its p99 ms", "the heavy one's images/s"),
        [(way.title, *map(over_rounds, zip(*seen, strict=True))) for way, seen in found.items()],
    )


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.company", description=__doc__)
    parser.add_argument("--light", default="mobilenet_v3_small:random")
    parser.add_argument("--heavy", default="resnet50:random")
    parser.add_argument("--backend", default="auto")
    parser.add_argument("--light-callers", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--rounds", type=int, default=3)
    asked = parser.parse_args(arguments)
    company = Company(asked.light, asked.heavy, backend=asked.backend)
    measuring = measure(company, light_callers=asked.light_callers, seconds=asked.seconds, rounds=asked.rounds)
    print("\n".join(asyncio.run(measuring)))  # noqa: T201 - it is what was asked for
    company.serving.close(timeout_s=_DEADLINE_S)


if __name__ == "__main__":
    main()
