"""Ten times as many requests as the service can answer."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

from reliability.finding import Finding, Scenario
from reliability.flood import flood
from reliability.scale import Scale
from reliability.serving import DEFAULT_MODEL, QUEUE_CAPACITY, growth_mb, serving

_FACTOR = 10.0
_CLIENTS = 64
_CLOSED_S = 15.0
_AFTER_S = 6.0
_WARM_FLOOD_S = 10.0

_GOODPUT_BAR = 0.95
_REFUSAL_BAR_MS = 10.0
_GROWTH_BAR_MB = 20.0


def measure(scale: Scale) -> Iterator[Finding]:
    """Use the default model: its forward is slow enough for one load generator to offer ten times the capacity."""
    with serving(DEFAULT_MODEL) as served:
        # Fill the queue first, so that memory is measured from there.
        flood(served, clients=_CLIENTS, closed_s=3.0, factor=_FACTOR, open_s=_WARM_FLOOD_S)
        before = asyncio.run(served.vitals_at_rest())
        cpu_before = served.cpu_seconds()
        report = flood(
            served, clients=_CLIENTS, closed_s=_CLOSED_S, factor=_FACTOR, open_s=scale.seconds, after_s=_AFTER_S
        )
        after = asyncio.run(served.vitals_at_rest())
        server_cores = (served.cpu_seconds() - cpu_before) / (_CLOSED_S + scale.seconds + _AFTER_S)
    opened = report["open"]
    capacity, goodput, offered = report["closed"]["per_second"], opened["per_second"], opened["offered_per_second"]
    statuses = {int(status): count for status, count in opened["statuses"].items()}
    load = f"{offered:,.0f} requests/s for {scale.seconds:g} s, {offered / capacity:.1f} times the capacity, Poisson"
    scenario = Scenario("overload", load)
    yield scenario.finding(
        f"offered ≥ {_FACTOR:g} times the capacity",
        f"{offered / capacity:.1f}; generator {opened['generator_cores']:.2f} cores, its p99 lateness "
        f"{opened['late']['p99_ms']:.0f} ms; server {server_cores:.2f} cores",
        met=offered >= 0.99 * _FACTOR * capacity,
    )
    yield scenario.finding(
        f"goodput ≥ {_GOODPUT_BAR:.0%} of the capacity",
        f"{goodput:.0f}/s of {capacity:.0f}/s: {goodput / capacity:.0%}",
        met=goodput >= _GOODPUT_BAR * capacity,
    )
    bound_ms = QUEUE_CAPACITY / capacity * 1e3
    yield scenario.finding(
        f"p99 of accepted requests ≤ queue capacity ({QUEUE_CAPACITY}) x time of one = {bound_ms:,.0f} ms",
        f"{opened['accepted']['p99_ms']:,.0f} ms (median {opened['accepted']['p50_ms']:,.0f} ms)",
        met=opened["accepted"]["p99_ms"] <= bound_ms,
    )
    yield scenario.finding(
        f"p99 of refusals ≤ {_REFUSAL_BAR_MS:g} ms",
        f"{opened['refused']['p99_ms']:.0f} ms (median {opened['refused']['p50_ms']:.1f} ms)",
        met=opened["refused"]["p99_ms"] <= _REFUSAL_BAR_MS,
    )
    yield scenario.finding(
        "only 200, or 429 with Retry-After",
        f"{', '.join(f'{status}: {count:,}' for status, count in sorted(statuses.items()))}; "
        f"without Retry-After: {opened['out_of_form']}",
        met=statuses.keys() <= {200, 429} and not opened["out_of_form"],
    )
    recovered = report["after"]["per_second"]
    yield scenario.finding(
        f"≥ {_GOODPUT_BAR:.0%} of the capacity 1 s after the load",
        f"{recovered:.0f}/s in the next {_AFTER_S - 1:g} s: {recovered / capacity:.0%}",
        met=recovered >= _GOODPUT_BAR * capacity,
    )
    yield scenario.finding(
        f"memory grows by ≤ {_GROWTH_BAR_MB:g} MB",
        f"{growth_mb(before, after):+.1f} MB",
        met=growth_mb(before, after) <= _GROWTH_BAR_MB,
    )
