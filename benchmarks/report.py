"""The page of a run: Markdown tables from the kept measurements, with the figures that plots.py draws."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from benchmarks import machine, plots
from benchmarks.measurement import Measurement, Store
from benchmarks.servers import SERVERS, SHARED_ENGINE
from benchmarks.statistic import figure, spread

MEASUREMENTS = "measurements.jsonl"
MACHINE = "machine.json"
PAGE = "README.md"

_EAGER = {"eager fp32", SHARED_ENGINE}

_CAPTIONS = {
    "throughput": "Throughput against connections, closed loop",
    "p99-closed": "p99 latency against connections, closed loop",
    "p99-open": "p99 latency against load, open loop, each server at shares of its own capacity",
    "p99-rate": "p99 latency against the offered rate, open loop",
    "cost-concurrency": "CPU time of the server for one image, by connections",
    "cost-size": "CPU time of the server for one image, by image size",
    "stages": "Stages of a request, from gradless's Server-Timing, open loop",
}


def write(folder: Path) -> Path:
    """(Re)make the page and the figures from what `folder` keeps. Returns the page."""
    measurements = Store(folder / MEASUREMENTS).read()
    lines = ["# Results", "", *_about(machine.load(folder / MACHINE), measurements)]
    for model in dict.fromkeys(measurement.model for measurement in measurements):
        lines += ["", f"## {model}", *_tables([m for m in measurements if m.model == model])]
        for path in plots.draw_all(measurements, model, folder):
            caption = _CAPTIONS[path.stem.removeprefix(f"{model}-")]
            lines += ["", f"![{caption}]({path.name})"]
    page = folder / PAGE
    page.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return page


def _about(described: dict[str, Any], measurements: Sequence[Measurement]) -> list[str]:
    rounds = len({measurement.round for measurement in measurements})
    versions = ", ".join(f"{name} {number}" for name, number in described["versions"].items())
    return [
        f"- Date: {described['date']}; {rounds} round(s); figures are medians, with (least to largest) over rounds",
        f"- Machine: {described['processor']}, {described['cores']} cores, {described['memory_gib']} GiB",
        f"- System: {described['system']}; load average before: {described['load_average_before']:.2f}",
        f"- Versions: Python {described['python']}, {versions}; wrk {described['wrk']}",
        f"- Command: `{described['command']}`",
        f"- Pictures: {described['settings']['pictures']}",
        "",
        "The load runs on the same cores as the servers; its share of all cores is in the column *client CPU*.",
    ]


def _tables(measurements: Sequence[Measurement]) -> list[str]:
    return [
        *_closed(measurements),
        *_same_engine(measurements),
        *_open(measurements),
        *_sizes(measurements),
        *_ceilings(measurements),
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
    for server in _servers(chosen):
        own = [m for m in chosen if m.server == server]
        row = [server, SERVERS[server].engine]
        row += [_spread(m.images_per_second for m in own if m.load == load) for load in loads]
        row += [_spread(m.latency_ms["p99"] for m in own if m.load == load) for load in loads]
        row += [_percent(max(m.client_cpu_share for m in own)), figure(max(m.server_bytes for m in own) / 2**20)]
        row += [_spread({m.round: m.start_seconds for m in own}.values()), str(sum(m.refused for m in own))]
        rows.append(row)
    return [
        "",
        "### Closed loop: connections that send the next image when the last is answered",
        "",
        *_table(head, rows),
    ]


def _same_engine(measurements: Sequence[Measurement]) -> list[str]:
    """gradless on eager fp32 against the peers' eager fp32: the server, not the backend."""
    chosen = [m for m in measurements if m.kind == "closed" and SERVERS[m.server].engine in _EAGER]
    best = {server: _best(chosen, server) for server in _servers(chosen)}
    own = best.get("gradless eager fp32")
    if own is None or len(best) == 1:
        return []
    rows = [[server, figure(rate), f"{own / rate:.2f}" if rate else "no answers"] for server, rate in best.items()]
    head = ["server", "best images/s", "gradless eager fp32 is … times as fast"]
    return ["", "### Same engine: eager fp32 behind every server", "", *_table(head, rows)]


def _best(measurements: Sequence[Measurement], server: str) -> float:
    by_load = defaultdict(list)
    for measurement in measurements:
        if measurement.server == server:
            by_load[measurement.load].append(measurement.images_per_second)
    return max(spread(rates).median for rates in by_load.values())


def _open(measurements: Sequence[Measurement]) -> list[str]:
    chosen = [m for m in measurements if m.kind == "open"]
    rows = []
    for server, load in _server_loads(chosen):
        own = [m for m in chosen if m.server == server and m.load == load]
        row = [server, f"{load:g} %", _spread(m.offered_per_second or 0.0 for m in own)]
        row += [_spread(m.images_per_second for m in own)]
        row += [_spread(m.latency_ms[name] for m in own) for name in ("p50", "p99")]
        rows.append([*row, str(sum(m.refused for m in own)), _percent(max(m.client_cpu_share for m in own))])
    head = ["server", "load", "offered/s", "answered/s", "p50 ms", "p99 ms", "not 200", "client CPU"]
    title = "### Open loop: Poisson arrivals at shares of the server's own capacity"
    return ["", title, "", *_table(head, rows)] if rows else []


def _sizes(measurements: Sequence[Measurement]) -> list[str]:
    chosen = [m for m in measurements if m.kind == "size"]
    rows = []
    for server in _servers(chosen):
        for size in dict.fromkeys(m.size for m in chosen):
            own = [m for m in chosen if m.server == server and m.size == size]
            cost = _spread(m.server_cpu_ms_per_image for m in own)
            rate = _spread(m.images_per_second for m in own)
            rows.append([server, size, rate, cost, str(sum(m.refused for m in own))])
    head = ["server", "size", "images/s", "CPU ms per image", "not 200"]
    return ["", "### Larger images", "", *_table(head, rows)] if rows else []


def _ceilings(measurements: Sequence[Measurement]) -> list[str]:
    chosen = [m for m in measurements if m.kind == "ceiling"]
    rows = []
    for name in dict.fromkeys(m.server for m in chosen):
        own = [m for m in chosen if m.server == name]
        latency = _spread(m.latency_ms["p50"] for m in own) if own[0].latency_ms else ""
        rows.append([name, _spread(m.images_per_second for m in own), latency])
    title = "### Ceilings: in process, without HTTP, all cores busy"
    return ["", title, "", *_table(["what", "images/s", "p50 ms"], rows)] if rows else []


def _servers(measurements: Sequence[Measurement]) -> list[str]:
    there = {measurement.server for measurement in measurements}
    return [name for name in SERVERS if name in there]


def _server_loads(measurements: Sequence[Measurement]) -> list[tuple[str, float]]:
    loads = sorted({measurement.load for measurement in measurements})
    return [(server, load) for server in _servers(measurements) for load in loads]


def _spread(values: Iterable[float]) -> str:
    there = list(values)
    if not there:
        return ""
    return spread(there).text() if len(there) > 1 else figure(there[0])


def _percent(share: float) -> str:
    return f"{share * 100:.1f} %"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    lines = [head, ["---"] * len(head), *rows]
    return [f"| {' | '.join(cells)} |" for cells in lines]
