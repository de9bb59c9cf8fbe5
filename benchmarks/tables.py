"""Tables of one model: servers under load, and the machine without a server."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

from benchmarks import comparisons
from benchmarks.comparisons import servers_of
from benchmarks.markdown import over_rounds, percent, table
from benchmarks.measurement import Kind, Measurement
from benchmarks.servers import DEFAULT, NULL_SERVER, SERVERS, SHARED_ENGINES
from benchmarks.statistic import figure, spread

# The engine's title, gradless's server with it, and the names of that engine.
_SAME_ENGINES = (
    ("eager fp32", "gradless eager fp32", {"eager fp32", SHARED_ENGINES["eager"]}),
    ("gradless's OpenVINO fp32", DEFAULT, {"openvino fp32", SHARED_ENGINES["openvino"]}),
    ("null model", NULL_SERVER, {"null", SHARED_ENGINES["null"]}),
)


def of_model(measurements: Sequence[Measurement]) -> list[str]:
    """Return every table of one model that has measurements."""
    return [
        *_closed(measurements),
        *_same_engine(measurements),
        *_open(measurements),
        *_sizes(measurements),
        *ceilings(measurements),
        *_against_ceilings(measurements),
    ]


def _closed(measurements: Sequence[Measurement]) -> list[str]:
    chosen = [m for m in measurements if m.kind == "closed"]
    if not chosen:
        return []
    loads = sorted({m.load for m in chosen})
    head = [
        "server",
        "engine",
        *(f"images/s at {load:g}" for load in loads),
        *(f"p99 ms at {load:g}" for load in loads),
    ]
    head += ["client CPU", "memory MiB", "start s", "not 200"]
    rows = []
    for server in servers_of(chosen):
        own = [m for m in chosen if m.server == server]
        row = [server, SERVERS[server].engine]
        row += [over_rounds(m.images_per_second for m in own if m.load == load) for load in loads]
        row += [over_rounds(m.latency_ms["p99"] for m in own if m.load == load) for load in loads]
        row += [percent(max(m.client_cpu_share for m in own)), figure(max(m.server_bytes for m in own) / 2**20)]
        row += [over_rounds({m.round: m.start_seconds for m in own}.values()), str(sum(m.refused for m in own))]
        rows.append(row)
    return [
        "",
        "### Closed loop: connections that send the next image when the last is answered",
        "",
        *table(head, rows),
    ]


def _same_engine(measurements: Sequence[Measurement]) -> list[str]:
    """Return the table of gradless against peers with the same engine, which compares servers."""
    lines: list[str] = []
    for title, gradless, engines in _SAME_ENGINES:
        chosen = [m for m in measurements if m.kind == "closed" and SERVERS[m.server].engine in engines]
        best = {server: _best(chosen, server) for server in servers_of(chosen)}
        own = best.get(gradless)
        if own is None or len(best) == 1:
            continue
        tails = {server: over_rounds(comparisons.tail(chosen, server, chosen[0].model)) for server in best}
        rows = [
            [server, figure(rate), f"{own / rate:.2f}" if rate else "no answers", tails[server]]
            for server, rate in best.items()
        ]
        head = ["server", "best images/s", f"{gradless} is … times as fast", "p99 / p50 at 32"]
        lines += ["", f"### Same engine: {title} behind every server", "", *table(head, rows)]
    return lines


def _best(measurements: Sequence[Measurement], server: str) -> float:
    by_load = defaultdict(list)
    for measurement in measurements:
        if measurement.server == server:
            by_load[measurement.load].append(measurement.images_per_second)
    return max(spread(rates).median for rates in by_load.values())


def _open(measurements: Sequence[Measurement]) -> list[str]:
    chosen = [m for m in measurements if m.kind in {"open", "overload"}]
    rows = []
    for server, kind, load in _server_loads(chosen):
        own = [m for m in chosen if (m.server, m.kind, m.load) == (server, kind, load)]
        row = [server, f"{load:g} %" + (", full from the start" if kind == "overload" else "")]
        row += [over_rounds(m.offered_per_second or 0.0 for m in own), over_rounds(m.images_per_second for m in own)]
        row += [over_rounds(m.latency_ms[name] for m in own) for name in ("p50", "p99")]
        rows.append([*row, str(sum(m.refused for m in own)), percent(max(m.client_cpu_share for m in own))])
    head = ["server", "load", "offered/s", "answered/s", "p50 ms", "p99 ms", "not 200", "client CPU"]
    title = "### Open loop: Poisson arrivals at shares of the server's own capacity"
    return ["", title, "", *table(head, rows)] if rows else []


def _sizes(measurements: Sequence[Measurement]) -> list[str]:
    chosen = [m for m in measurements if m.kind == "size"]
    rows = []
    for server in servers_of(chosen):
        for size in dict.fromkeys(m.size for m in chosen):
            own = [m for m in chosen if m.server == server and m.size == size]
            cost = over_rounds(m.server_cpu_ms_per_image for m in own)
            rate = over_rounds(m.images_per_second for m in own)
            rows.append([server, size, rate, cost, str(sum(m.refused for m in own))])
    head = ["server", "size", "images/s", "CPU ms per image", "not 200"]
    return ["", "### Larger images", "", *table(head, rows)] if rows else []


def ceilings(measurements: Sequence[Measurement]) -> list[str]:
    """Return the table of measurements of one model without a server."""
    chosen = [m for m in measurements if m.kind == "ceiling"]
    rows = []
    for name in dict.fromkeys(m.server for m in chosen):
        own = [m for m in chosen if m.server == name]
        latency = over_rounds(m.latency_ms["p50"] for m in own) if own[0].latency_ms else ""
        rows.append([name, over_rounds(m.images_per_second for m in own), latency])
    title = "### Ceilings: in process, without HTTP, all cores busy"
    return ["", title, "", *table(["what", "images/s", "p50 ms"], rows)] if rows else []


def _against_ceilings(measurements: Sequence[Measurement]) -> list[str]:
    rows = []
    for server in servers_of([m for m in measurements if m.kind == "closed" and SERVERS[m.server].backend]):
        model = measurements[0].model
        found = [
            comparisons.of_ceiling(measurements, server, model),
            comparisons.of_one_image(measurements, server, model),
            comparisons.tail(measurements, server, model),
            comparisons.many_connections(measurements, server, model),
            comparisons.goodput(measurements, server, model),
            comparisons.refusals_ms(measurements, server, model, "p50"),
            comparisons.refusals_ms(measurements, server, model, "p99"),
        ]
        rows.append([server.removeprefix("gradless "), *map(over_rounds, found)])
    head = ["gradless", "images/s at 32 / ceiling", "p50 at 1 / one image in process", "p99 / p50 at 32"]
    head += ["images/s at 128 / at 32", "goodput at 120 % / capacity", "refusals, p50 ms", "refusals, p99 ms"]
    title = "### Against the ceilings: ratios of figures of the same turn or round"
    return ["", title, "", *table(head, rows)] if rows else []


def _server_loads(measurements: Sequence[Measurement]) -> list[tuple[str, Kind, float]]:
    there = {(m.server, m.kind, m.load) for m in measurements}
    return sorted(there, key=lambda found: (list(SERVERS).index(found[0]), *found[1:]))
