"""Run clients of every kind on one server and check for leaks: `python -m reliability.soak --minutes 30`.

Ends with status 1 when a bar is missed.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import sys
from collections.abc import Iterator, Sequence
from math import inf
from statistics import median
from time import monotonic
from typing import NamedTuple

import uvloop

from observe.processes import NotStartedError
from reliability.counted import Counted, counted_at_rest, documented_statuses
from reliability.crowd import Crowd
from reliability.finding import Finding, Scenario, show
from reliability.ledger import ROUTES, Ledger
from reliability.pictures import draw_pictures
from reliability.serving import DEFAULT_MODEL, NULL_MODEL, Served, Vitals, growth_mb, serving

_GROWTH_BAR_MB = 20.0
# For a run that ends before pools and caches are full.
_SHORT_GROWTH_BAR_MB = 150.0
_EVERY_S = 2.0
_PRINT_EVERY_S = 60.0

# Memory counts from when pools and caches have filled: two minutes, or a quarter of a short run.
_WARM_S = 120.0
_WARM_SHARE = 0.25
# Medians over a tenth of the run, because one sample may fall into the decode of a large image.
_WINDOW_SHARE = 0.1

# What Python or a library may open once and keep.
_SPARE_DESCRIPTORS = 2
# Pools start their threads when they are first needed, which may be late in a short run.
_SPARE_THREADS = 4


class _Sample(NamedTuple):
    at_s: float
    vitals: Vitals


class _Watch:
    """Samples a server until cancelled."""

    def __init__(self, served: Served) -> None:
        self._served = served
        self.samples: list[_Sample] = []

    async def run(self, ledger: Ledger) -> None:
        began, print_at_s = monotonic(), 0.0
        while True:
            sample = _Sample(monotonic() - began, self._served.vitals())
            self.samples.append(sample)
            if sample.at_s >= print_at_s:
                print_at_s = sample.at_s + _PRINT_EVERY_S
                _print(
                    f"{sample.at_s / 60:5.1f} min  {ledger.sent.total():8,} sent  "
                    f"{sample.vitals.rss_bytes / 1e6:6.0f} MB  {sample.vitals.descriptors} descriptors  "
                    f"{sample.vitals.threads} threads"
                )
            await asyncio.sleep(_EVERY_S)

    def rss_mb(self, from_s: float, to_s: float) -> float:
        """Return the median between two moments under load."""
        return median(sample.vitals.rss_bytes for sample in self.samples if from_s <= sample.at_s <= to_s) / 1e6

    def most_threads(self, from_s: float, to_s: float) -> int:
        """Return the maximum between two moments."""
        return max(sample.vitals.threads for sample in self.samples if from_s <= sample.at_s <= to_s)


class _Soaked(NamedTuple):
    """Results of a run."""

    watch: _Watch
    # At rest: before the load, after the warm-up, at the end.
    rests: tuple[Vitals, Vitals, Vitals]
    # Seconds from the start to the second of them, and to the end of the load.
    warm_at_s: float
    ended_at_s: float
    ledger: Ledger
    server: Counted
    documented: dict[str, frozenset[int]]


def soak(minutes: float) -> list[Finding]:
    """Run a server and all clients, and return every bar. Raises observe.processes.NotStartedError."""
    scenario = Scenario("soak", f"{minutes:g} min of good, bad, large, disconnecting and debugging clients")
    with serving(f"{DEFAULT_MODEL},{NULL_MODEL}") as served:
        pid = served.process.pid
        _print(f"gradless serves as process {pid}")
        soaked = uvloop.run(_crowded(served, minutes * 60))
        findings = [*_findings_of(scenario, soaked, minutes * 60)]
        alive = served.alive()
        status = served.stop() if alive else served.process.returncode
        findings.append(
            scenario.finding("one process from start to end", "it survived" if alive else "it died", met=alive)
        )
        findings.append(scenario.finding("SIGTERM ends it with status 0", f"status {status}", met=status == 0))
    return findings


async def _crowded(served: Served, seconds: float) -> _Soaked:
    loop = asyncio.get_running_loop()
    ledger = Ledger()
    crowd = Crowd(served.address, draw_pictures(), ledger)
    documented = await documented_statuses(served.address)
    await crowd.one_of_each()
    before = await _at_rest(served, crowd)
    warm_s = _WARM_S if seconds >= 2 * _WARM_S else seconds * _WARM_SHARE
    watch = _Watch(served)
    watching = asyncio.create_task(watch.run(ledger))
    began = loop.time()
    await crowd.send_until(began + warm_s)
    warm = await _at_rest(served, crowd)
    warm_at_s = loop.time() - began
    await crowd.send_until(loop.time() + seconds - warm_s)
    ended_at_s = loop.time() - began
    watching.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await watching
    after = await _at_rest(served, crowd)
    server = await counted_at_rest(served.address, ROUTES, ledger.requests())
    return _Soaked(watch, (before, warm, after), warm_at_s, ended_at_s, ledger, server, documented)


async def _at_rest(served: Served, crowd: Crowd) -> Vitals:
    """Return the resources without clients and after the lens has returned freed memory to the system."""
    await served.vitals_at_rest()
    await crowd.compare()
    return await served.vitals_at_rest()


def _findings_of(scenario: Scenario, soaked: _Soaked, seconds: float) -> Iterator[Finding]:
    yield from soaked.ledger.findings(scenario, soaked.server, soaked.documented)
    yield scenario.finding(
        "no image stays in flight", f"{soaked.server.in_flight:g} in flight", met=not soaked.server.in_flight
    )
    before, warm, after = soaked.rests
    watch, warm_at_s = soaked.watch, soaked.warm_at_s
    window_s = max(seconds * _WINDOW_SHARE, 3 * _EVERY_S)
    early, late = watch.rss_mb(warm_at_s, warm_at_s + window_s), watch.rss_mb(soaked.ended_at_s - window_s, inf)
    bar_mb = _GROWTH_BAR_MB if seconds >= 2 * _WARM_S else _SHORT_GROWTH_BAR_MB
    yield scenario.finding(
        f"memory under load grows by ≤ {bar_mb:g} MB after the first {warm_at_s:.0f} s of {seconds:.0f}",
        f"{early:.0f} MB, at the end {late:.0f} MB: {late - early:+.1f} MB (medians)",
        met=late - early <= bar_mb,
    )
    yield scenario.finding(
        f"and by ≤ {bar_mb:g} MB at rest, after freed memory was returned",
        f"{warm.rss_bytes / 1e6:.0f} MB, at the end {after.rss_bytes / 1e6:.0f} MB: {growth_mb(warm, after):+.1f} MB",
        met=growth_mb(warm, after) <= bar_mb,
    )
    yield scenario.finding(
        "no descriptor is leaked",
        f"at rest {before.descriptors} before, {after.descriptors} after",
        met=after.descriptors <= before.descriptors + _SPARE_DESCRIPTORS,
    )
    half_s = soaked.ended_at_s / 2
    threads = watch.most_threads(0, half_s), watch.most_threads(half_s, inf)
    yield scenario.finding(
        "no thread is leaked",
        f"at most {threads[0]} in the first half, {threads[1]} in the second",
        met=threads[1] <= threads[0] + (0 if seconds >= 2 * _WARM_S else _SPARE_THREADS),
    )


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m reliability.soak", description=__doc__)
    parser.add_argument("--minutes", type=float, default=30.0, help="duration of the load, 30 by default")
    minutes: float = parser.parse_args(arguments).minutes
    try:
        findings = soak(minutes)
    except NotStartedError as error:
        sys.exit(f"reliability: {error}")
    show(findings)
    missed = [finding.bar for finding in findings if not finding.met]
    sys.exit(f"missed: {'; '.join(missed)}" if missed else None)


def _print(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
