"""Measure how a heavy model slows a light one on the same device: `python -m benchmarks.shared_device`.

In one process without HTTP, alternately: with a lock for each model, as served, or with one lock for the device, so
that whole forwards run in order of arrival. Prints a table.
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

# Longer than any wait for the heavy model, so that no request times out.
_DEADLINE_S = 600.0


class Way(NamedTuple):
    """The number of clients of the heavy model, and whether both models share one lock."""

    title: str
    heavy_clients: int
    one_lock: bool


WAYS = (
    Way("alone", 0, one_lock=False),
    Way("with the heavy one, own locks", 32, one_lock=False),
    Way("with the heavy one, one lock", 32, one_lock=True),
)


class Result(NamedTuple):
    """Results of one way in one round."""

    light_per_second: float
    light_p50_ms: float
    light_p99_ms: float
    heavy_per_second: float


class _OneAtATime(FairLock):
    """A lock that even batches of one model do not share."""

    @contextmanager
    def shared(self) -> Iterator[None]:
        with self:
            yield


class TwoModels:
    """A runtime of two models, and clients in closed loops."""

    def __init__(self, light: str, heavy: str, *, backend: str) -> None:
        self._light, self._heavy = light, heavy
        options = ServingOptions(models=[light, heavy], backend=backend, deadline_s=_DEADLINE_S)
        self.serving = LocalRuntime(options, Telemetry())
        self._picture = encode(draw("clock").resize(_SIZE), "JPEG")

    async def measure_way(self, way: Way, *, light_clients: int, seconds: float) -> Result:
        """Measure for `seconds`, and until the last requests are answered."""
        device_lock = _OneAtATime()
        for served in self.serving.models.values():
            served.engine.lock = device_lock if way.one_lock else FairLock()
        started_at = perf_counter()
        light: list[float] = []
        heavy: list[float] = []
        async with asyncio.TaskGroup() as clients:
            for _ in range(light_clients):
                clients.create_task(self._client(self._light, started_at + seconds, light))
            for _ in range(way.heavy_clients):
                clients.create_task(self._client(self._heavy, started_at + seconds, heavy))
        elapsed = perf_counter() - started_at
        latency = latency_summary(light)
        return Result(len(light) / elapsed, latency["p50_ms"], latency["p99_ms"], len(heavy) / elapsed)

    async def _client(self, model: str, until: float, latencies_ms: list[float]) -> None:
        while (sent_at := perf_counter()) < until:
            await self.serving.predict(model, InferenceRequest("classify", [self._picture], top_k=1))
            latencies_ms.append((perf_counter() - sent_at) * 1e3)


async def measure(two_models: TwoModels, *, light_clients: int, seconds: float, rounds: int) -> list[str]:
    """Return the lines of the table."""
    found: dict[Way, list[Result]] = defaultdict(list)
    for _ in range(rounds):
        for way in WAYS:
            found[way].append(await two_models.measure_way(way, light_clients=light_clients, seconds=seconds))
    return table(
        ("the light model", "its images/s", "its p50 ms", "its p99 ms", "the heavy one's images/s"),
        [(way.title, *map(over_rounds, zip(*results, strict=True))) for way, results in found.items()],
    )


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.shared_device", description=__doc__)
    parser.add_argument("--light", default="mobilenet_v3_small:random")
    parser.add_argument("--heavy", default="resnet50:random")
    parser.add_argument("--backend", default="auto")
    parser.add_argument("--light-clients", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--rounds", type=int, default=3)
    parsed = parser.parse_args(arguments)
    two_models = TwoModels(parsed.light, parsed.heavy, backend=parsed.backend)
    measuring = measure(two_models, light_clients=parsed.light_clients, seconds=parsed.seconds, rounds=parsed.rounds)
    print("\n".join(asyncio.run(measuring)))  # noqa: T201 - the output
    two_models.serving.close(timeout_s=_DEADLINE_S)


if __name__ == "__main__":
    main()
