"""Compare gradless's ways to use one GPU with LitServe, mosec and a naive FastAPI service.

`python -m benchmarks.on_gpu --images FOLDER` runs closed loops by wrk and prints a table. Each server starts once,
because starts are slow there, and is measured `--rounds` times at each load. One way is several gradless services, each
with its part of the connections.
"""

from __future__ import annotations

import argparse
import os
import resource
import sys
import tempfile
from collections import defaultdict
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from time import perf_counter

import torch

from benchmarks import pictures
from benchmarks.bench import Bench
from benchmarks.load import closed_loop, require_wrk
from benchmarks.markdown import over_rounds, table
from benchmarks.processes import RunningServer, ServerFailedError, post, resident_bytes, running
from benchmarks.servers import SERVERS, ServerSpec
from models.hardware.cores import available_cores

CONNECTIONS = (32, 128)

_MODEL = "efficientnet_lite0"
_WARM_UP_S = 2.0

# Threads of wrk for all servers together. They took 0.4 cores to send 2,900 photographs a second.
_LOAD_THREADS = 4

# LitServe's workers and mosec's decoders: as many as gradless's workers. LitServe also has processes for HTTP.
_PEER_PROCESSES = str(max(1, available_cores() * 3 // 4))
_PEER_HTTP_WORKERS = str(max(1, available_cores() // 4))


@dataclass(frozen=True, slots=True)
class Way:
    """One or several `instances` of a server on the GPU."""

    spec: ServerSpec
    instances: int = 1


@dataclass(frozen=True, slots=True)
class Result:
    """Results of one load in one round over all instances: p50 of the middle one, p99 of the worst one, busy cores of
    the client and of all server processes."""

    images_per_second: float
    p50_ms: float
    p99_ms: float
    not_answered: int
    client_cores: float
    server_cores: float


@dataclass(frozen=True, slots=True)
class Visited:
    """A server's rounds by connections, and its memory at the end: of all processes, and of the otherwise unused
    GPU."""

    rounds: Mapping[int, list[Result]]
    host_bytes: int
    gpu_bytes: int


_HEAD = (
    "server",
    "connections",
    "images/s",
    "p50 ms",
    "p99 ms",
    "not answered",
    "cores of the client",
    "of the server",
    "its GB",
    "GB of the GPU",
    "the first's rate by its",
)


def ways(device: str) -> dict[str, Way]:
    """Return every way by name; the first is the reference."""
    return {
        "gradless": Way(_gradless(device)),
        "LitServe": Way(
            _peer(
                "LitServe",
                device,
                PEER_WORKERS=_PEER_PROCESSES,
                PEER_HTTP_WORKERS=_PEER_HTTP_WORKERS,
                PEER_BATCH="8",
            )
        ),
        "mosec": Way(_peer("mosec", device, PEER_DECODERS=_PEER_PROCESSES, PEER_WORKERS="2", PEER_BATCH="32")),
        "gradless, one process": Way(_gradless(device, GRADLESS_HTTP_WORKERS="0")),
        "gradless, 8 services of one process": Way(
            _gradless(device, GRADLESS_HTTP_WORKERS="0", GRADLESS_DECODE_THREADS="2"), instances=8
        ),
        "gradless, bf16": Way(_gradless(device, GRADLESS_PRECISION="bf16")),
        "naive FastAPI": Way(_peer("naive FastAPI", device)),
    }


def main(arguments: Sequence[str] | None = None) -> None:
    options = _parser().parse_args(arguments)
    require_wrk()
    known = ways(options.device)
    chosen = {name: way for name, way in known.items() if not options.ways or name in options.ways}
    first: Visited | None = None
    print("\n".join(table(_HEAD, [])), flush=True)  # noqa: T201 - the output
    with tempfile.TemporaryDirectory(prefix="on-gpu-") as scratch:
        files = pictures.jpegs(options.images.resolve())
        # One environment for all: the interpreter of this process.
        bench = Bench({"as given": files}, Path(sys.executable), options.logs or Path(scratch))
        for name, way in chosen.items():
            try:
                found = _visited(way, bench, options.rounds, options.seconds)
            except (ServerFailedError, RuntimeError) as error:
                # Continue with the others.
                print(f"{name}: {error}", file=sys.stderr, flush=True)  # noqa: T201
                continue
            first = first or found
            # At once, because the next may end the whole run.
            print("\n".join(_rows(name, found, first)), flush=True)  # noqa: T201
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU"
    print(f"\n{device}, {os.cpu_count()} cores, torch {torch.__version__}; medians (least-largest) of the rounds")  # noqa: T201


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.on_gpu", description=__doc__)
    parser.add_argument("--images", type=Path, required=True, help="folder of JPEG files to send")
    parser.add_argument("--ways", nargs="+", choices=list(ways("cuda")), help="only these ways")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=3.0, help="of one measurement")
    parser.add_argument("--device", default="cuda", help="cpu: for a trial without a GPU")
    parser.add_argument("--logs", type=Path, help="folder for the servers' logs")
    return parser


def _gradless(device: str, **environment: str) -> ServerSpec:
    return ServerSpec(
        name="gradless " + " ".join(environment.values()),
        engine="eager",
        command=("-c", "from app.cli import main; main()", "serve"),
        path="/v1/classify",
        project=True,
        environment={"GRADLESS_DEVICE": device, **environment},
        backend="eager",
    )


def _peer(name: str, device: str, **environment: str) -> ServerSpec:
    spec = SERVERS[name]
    return replace(spec, environment={**spec.environment, "PEER_DEVICE": device, **environment})


def _visited(way: Way, bench: Bench, rounds: int, seconds: float) -> Visited:
    found: dict[int, list[Result]] = defaultdict(list)
    with ExitStack() as stack, ThreadPoolExecutor(way.instances) as threads:
        # Each instance has a log of its own.
        numbered = [replace(way.spec, name=f"{way.spec.name} {number}") for number in range(way.instances)]
        starts = [threads.submit(stack.enter_context, running(spec, _MODEL, bench)) for spec in numbered]
        servers = [start.result() for start in starts]
        _load(servers, bench, threads, min(CONNECTIONS), _WARM_UP_S)
        for _ in range(rounds):
            for connections in CONNECTIONS:
                found[connections].append(_load(servers, bench, threads, connections, seconds))
        return Visited(found, resident_bytes(servers), _gpu_bytes())


def _load(
    servers: Sequence[RunningServer], bench: Bench, threads: ThreadPoolExecutor, connections: int, seconds: float
) -> Result:
    for server in servers:
        # Until requests of the last load are answered.
        post(server.url, bench.usual[0].read_bytes())
    client_before, started_at = _children_seconds(), perf_counter()
    loads = [
        threads.submit(
            closed_loop,
            server,
            bench.usual,
            connections=connections // len(servers),
            seconds=seconds,
            threads=max(1, _LOAD_THREADS // len(servers)),
        )
        for server in servers
    ]
    loaded = [load.result() for load in loads]
    elapsed = perf_counter() - started_at
    reports = [each.report for each in loaded]
    return Result(
        images_per_second=sum(report["steady_per_second"] for report in reports),
        p50_ms=median(report["p50_ms"] for report in reports),
        p99_ms=max(report["p99_ms"] for report in reports),
        not_answered=sum(
            report["failed"] + sum(count for status, count in report["statuses"].items() if status != "200")
            for report in reports
        ),
        client_cores=(_children_seconds() - client_before) / elapsed,
        server_cores=sum(each.server_cpu_share for each in loaded) * (os.cpu_count() or 1),
    )


def _children_seconds() -> float:
    """Return the CPU time of ended children, which are the load generators."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def _gpu_bytes() -> int:
    """Return the used memory of the first GPU by the driver; 0 without one."""
    return torch.cuda.device_memory_used(torch.device("cuda", 0)) if torch.cuda.is_available() else 0


def _rows(name: str, found: Visited, first: Visited) -> list[str]:
    cells = [
        (
            name,
            str(connections),
            over_rounds(result.images_per_second for result in rounds),
            over_rounds(result.p50_ms for result in rounds),
            over_rounds(result.p99_ms for result in rounds),
            str(sum(result.not_answered for result in rounds)),
            f"{median(result.client_cores for result in rounds):.1f}",
            f"{median(result.server_cores for result in rounds):.1f}",
            f"{found.host_bytes / 1e9:.1f}",
            f"{found.gpu_bytes / 1e9:.1f}",
            over_rounds(
                ours.images_per_second / theirs.images_per_second
                for ours, theirs in zip(first.rounds[connections], rounds, strict=True)
                if theirs.images_per_second
            ),
        )
        for connections, rounds in found.rounds.items()
    ]
    return table(_HEAD, cells)[2:]


if __name__ == "__main__":
    main()
