"""gradless on a machine with one GPU, in the ways that it can be run there, beside LitServe, mosec and a naive FastAPI
service on the same GPU: `python -m benchmarks.on_gpu --images FOLDER`. Closed loops by wrk; prints a table.

Each server is started once and measured `--rounds` times at each load: starts are long there. One way is several
gradless services side by side, as an operator without workers would have it; each has its part of the connections.
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

# Of wrk, for all servers together. They took 0.4 cores to send 2,900 photographs a second.
_LOAD_THREADS = 4

# LitServe's workers and mosec's decoders: as many as gradless's workers. LitServe has processes for HTTP beside them.
_PEER_PROCESSES = str(max(1, available_cores() * 3 // 4))
_PEER_FRONTS = str(max(1, available_cores() // 4))


@dataclass(frozen=True, slots=True)
class Way:
    """`instances` of one server, side by side on the one GPU."""

    spec: ServerSpec
    instances: int = 1


@dataclass(frozen=True, slots=True)
class Seen:
    """Of one load in one round, over all instances: p50 is the middle one's, p99 the worst one's. Cores are those that
    were busy, of the client and of all the servers' processes."""

    images_per_second: float
    p50_ms: float
    p99_ms: float
    not_answered: int
    client_cores: float
    server_cores: float


@dataclass(frozen=True, slots=True)
class Visited:
    """A server's rounds by connections, and the memory that it had at the end: of all its processes, and of the GPU,
    which nobody else is to use."""

    rounds: Mapping[int, list[Seen]]
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
    """Every way by its name, the one that all others are compared with first."""
    return {
        "gradless": Way(_gradless(device)),
        "LitServe": Way(
            _peer("LitServe", device, PEER_WORKERS=_PEER_PROCESSES, PEER_FRONTS=_PEER_FRONTS, PEER_BATCH="8")
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
    asked = _parser().parse_args(arguments)
    require_wrk()
    known = ways(asked.device)
    chosen = {name: way for name, way in known.items() if not asked.ways or name in asked.ways}
    first: Visited | None = None
    print("\n".join(table(_HEAD, [])), flush=True)  # noqa: T201 - it is what was asked for
    with tempfile.TemporaryDirectory(prefix="on-gpu-") as scratch:
        files = pictures.jpegs(asked.images.resolve())
        # One environment has it all: the interpreter of this process.
        bench = Bench({"as given": files}, Path(sys.executable), asked.logs or Path(scratch))
        for name, way in chosen.items():
            try:
                found = _visited(way, bench, asked.rounds, asked.seconds)
            except (ServerFailedError, RuntimeError) as error:
                # The others are worth having.
                print(f"{name}: {error}", file=sys.stderr, flush=True)  # noqa: T201
                continue
            first = first or found
            # At once: the next may fail in a way that ends all.
            print("\n".join(_rows(name, found, first)), flush=True)  # noqa: T201
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU"
    print(f"\n{device}, {os.cpu_count()} cores, torch {torch.__version__}; medians (least-largest) of the rounds")  # noqa: T201


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.on_gpu", description=__doc__)
    parser.add_argument("--images", type=Path, required=True, help="folder of JPEG files to send")
    parser.add_argument("--ways", nargs="+", choices=list(ways("cuda")), help="not all of them")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=3.0, help="of one measurement")
    parser.add_argument("--device", default="cuda", help="cpu: to try whether it all works")
    parser.add_argument("--logs", type=Path, help="folder for what the servers say")
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
    found: dict[int, list[Seen]] = defaultdict(list)
    with ExitStack() as stack, ThreadPoolExecutor(way.instances) as threads:
        # Each has a log of its own.
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
) -> Seen:
    for server in servers:
        # What the last load's clients did not wait for has been answered then.
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
    return Seen(
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
    """CPU time of the children that have ended: the servers have not."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def _gpu_bytes() -> int:
    """Memory that is taken on the first GPU, by whomever, as the driver has it; 0 without one."""
    return torch.cuda.device_memory_used(torch.device("cuda", 0)) if torch.cuda.is_available() else 0


def _rows(name: str, found: Visited, first: Visited) -> list[str]:
    cells = [
        (
            name,
            str(connections),
            over_rounds(seen.images_per_second for seen in rounds),
            over_rounds(seen.p50_ms for seen in rounds),
            over_rounds(seen.p99_ms for seen in rounds),
            str(sum(seen.not_answered for seen in rounds)),
            f"{median(seen.client_cores for seen in rounds):.1f}",
            f"{median(seen.server_cores for seen in rounds):.1f}",
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
