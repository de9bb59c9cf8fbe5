"""Ratios of measurements of the same turn, or of the same round if one has no turns, so that other load slowed both.

Each function returns one value for each turn that has both measurements.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from statistics import median

from benchmarks.measurement import Kind, Measurement, ceiling_name
from benchmarks.servers import NULL, NULL_SERVER, PEERS, SERVERS

Kept = Sequence[Measurement]
Value = Callable[[Measurement], float]

# The numbers of a round and of a turn in it.
When = tuple[int, int]

# Connections for single images, for a busy server with a short queue, and for many times a batch.
ALONE = 1
BUSY = 32
MANY = 128


def servers_of(kept: Kept) -> list[str]:
    """Return the servers that were measured, in the order of SERVERS."""
    there = {measurement.server for measurement in kept}
    return [name for name in SERVERS if name in there]


def rate(measurement: Measurement) -> float:
    """Return images a second."""
    return measurement.images_per_second


def p50(measurement: Measurement) -> float:
    """Return the median latency in ms."""
    return measurement.latency_ms["p50"]


def by_turn(
    kept: Kept, value: Value, kind: Kind, server: str, *, model: str, load: float = 0.0, size: str | None = None
) -> dict[When, float]:
    """Return `value` of the selected measurement of each turn."""
    return {
        (m.round, m.turn): value(m)
        for m in kept
        if (m.kind, m.server, m.model, m.load) == (kind, server, model, load) and size in {None, m.size}
    }


def ratios(over: Mapping[When, float], under: Mapping[When, float]) -> list[float]:
    """Return the ratios of the turns that both have."""
    return [over[when] / under[when] for when in over if under.get(when)]


def against_peer(kept: Kept, server: str, peer: str, model: str) -> list[float]:
    """Return images/s at 32 connections, `server` over `peer`."""
    own, other = (by_turn(kept, rate, "closed", name, model=model, load=BUSY) for name in (server, peer))
    return ratios(own, other)


def best_peer(kept: Kept, model: str) -> str | None:
    """Return the server with the largest median of images/s at 32 connections, or None."""
    rates = {peer: by_turn(kept, rate, "closed", peer, model=model, load=BUSY).values() for peer in PEERS}
    measured = {peer: median(values) for peer, values in rates.items() if values}
    return max(measured, key=lambda peer: measured[peer]) if measured else None


def of_ceiling(kept: Kept, server: str, model: str) -> list[float]:
    """Return images/s at 32 connections over decode and forward in process, all cores busy."""
    ceiling = by_turn(kept, rate, "ceiling", ceiling_name("together", SERVERS[server].engine), model=model)
    return ratios(by_turn(kept, rate, "closed", server, model=model, load=BUSY), ceiling)


def of_decoding(kept: Kept, server: str = NULL_SERVER) -> list[float]:
    """Return images/s of the null model's server at 32 connections over decoding alone in process, all cores busy."""
    ceiling = by_turn(kept, rate, "ceiling", "decode", model=NULL)
    return ratios(by_turn(kept, rate, "closed", server, model=NULL, load=BUSY), ceiling)


def of_one_image(kept: Kept, server: str, model: str) -> list[float]:
    """Return p50 of one connection over p50 of decode and forward in process, one image after another."""
    alone = by_turn(kept, p50, "ceiling", ceiling_name("alone", SERVERS[server].engine), model=model)
    return ratios(by_turn(kept, p50, "closed", server, model=model, load=ALONE), alone)


def tail(kept: Kept, server: str, model: str) -> list[float]:
    """Return p99 over p50 at 32 connections."""
    p99 = by_turn(kept, lambda m: m.latency_ms["p99"], "closed", server, model=model, load=BUSY)
    return ratios(p99, by_turn(kept, p50, "closed", server, model=model, load=BUSY))


def many_connections(kept: Kept, server: str, model: str) -> list[float]:
    """Return images/s at 128 connections over those at 32."""
    many, busy = (by_turn(kept, rate, "closed", server, model=model, load=load) for load in (MANY, BUSY))
    return ratios(many, busy)


def goodput(kept: Kept, server: str, model: str) -> list[float]:
    """Return images/s under overload over the capacity that the overload is based on."""
    chosen = [m for m in kept if (m.kind, m.server, m.model) == ("overload", server, model)]
    return [m.images_per_second / (m.offered_per_second / (m.load / 100)) for m in chosen if m.offered_per_second]


def refusals_ms(kept: Kept, server: str, model: str, percentile: str) -> list[float]:
    """Return the latency of 429 answers under overload."""
    chosen = [m for m in kept if (m.kind, m.server, m.model) == ("overload", server, model)]
    return [m.refusal_latency_ms[percentile] for m in chosen if m.refusal_latency_ms]


def preprocessing(kept: Kept, size: str) -> list[float]:
    """Return CPU time of gradless's decode, resize and crop over Pillow's."""
    own, plain = (
        {
            (m.round, m.turn): m.figures["cpu_ms"]
            for m in kept
            if (m.kind, m.server, m.size) == ("preprocessing", way, size)
        }
        for way in ("gradless", "Pillow")
    )
    return ratios(own, plain)


def start_seconds(kept: Kept, name: str) -> list[float]:
    """Return the seconds of the first start, a later one, or an import, by the name of the figure."""
    return [m.figures[name] for m in kept if m.kind == "start"]
