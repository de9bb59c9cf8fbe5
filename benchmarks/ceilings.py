"""What this machine gives without HTTP, in a process of its own for each engine: decoding alone; decode and forward
together on all cores; one image after another. Says `ready`, then measures what a line of its input names, and answers
each with a line of JSON: images a second, and latencies where there is one image at a time."""

from __future__ import annotations

import argparse
import json
import sys
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import cycle
from pathlib import Path
from time import perf_counter
from typing import cast

from benchmarks.measurement import Ceiling
from benchmarks.preprocessing import by_gradless
from benchmarks.statistic import latency_summary
from models import backends
from models.backends import BackendOptions
from models.hardware import memory
from models.hardware.cores import available_cores, use_one_core_in_this_thread
from models.images.transforms import Transform
from models.inference.engine import Engine
from models.inference.image_job import BatchItem, ItemOutput
from models.interface.request import InferenceRequest
from models.loading import catalog
from models.loading.calibration import Calibration
from models.loading.load import load
from models.scheduling.batcher import Batcher

_MAX_BATCH_SIZE = 32

# Twice the largest batch: one in the forward, one being decoded.
_IN_FLIGHT = 64

# Decoding before it counts.
_WARM_UP_S = 0.5

_LEAST_ANSWERS = 4 * _MAX_BATCH_SIZE

# gradless's own: converting for OpenVINO takes seconds, and the servers have done it already.
CACHE = Path("~/.cache/gradless").expanduser()


def decoding_alone(bodies: Sequence[bytes], transform: Transform, seconds: float) -> float:
    """Images a second that all cores decode, once they have begun."""
    cores = available_cores()

    def rate(for_seconds: float) -> float:
        done = 0
        started_at = perf_counter()
        for body in cycle(bodies):
            by_gradless(body, transform)
            done += 1
            elapsed = perf_counter() - started_at
            if elapsed > for_seconds:
                break
        return done / elapsed

    with ThreadPoolExecutor(cores, initializer=use_one_core_in_this_thread) as pool:
        list(pool.map(rate, [_WARM_UP_S] * cores))
        return sum(pool.map(rate, [seconds] * cores))


def one_at_a_time(bodies: Sequence[bytes], engine: Engine, seconds: float) -> list[float]:
    """Latencies in ms of decode and forward, one image after another, with nothing else going on."""
    latencies_ms: list[float] = []

    def work() -> None:
        engine.prepare_thread()
        engine.warm_up()
        deadline = perf_counter() + seconds
        for body in cycle(bodies):
            started_at = perf_counter()
            engine.run([BatchItem(by_gradless(body, engine.model.transform), InferenceRequest("classify", top_k=5))])
            latencies_ms.append((perf_counter() - started_at) * 1e3)
            if perf_counter() > deadline:
                break

    _in_a_thread(work)
    return latencies_ms


def together(bodies: Sequence[bytes], engine: Engine, seconds: float) -> float:
    """Images a second through a decode pool and the batcher, with always enough under way."""
    cores = available_cores()
    places = threading.Semaphore(_IN_FLIGHT)
    done_at: list[float] = []

    def prepare() -> None:
        engine.prepare_thread()
        engine.warm_up()

    def answered(_: object) -> None:
        done_at.append(perf_counter())
        places.release()

    batcher: Batcher[BatchItem, ItemOutput] = Batcher(
        engine.run,
        name="ceiling",
        max_batch_size=_MAX_BATCH_SIZE,
        queue_capacity=_IN_FLIGHT,
        max_in_flight=engine.hints.max_in_flight,
        overlap_min_size=engine.hints.overlap_min_size,
        prepare=prepare,
    )
    batcher.wait_until_ready()

    def decode_and_queue(body: bytes) -> None:
        batcher.submit(
            BatchItem(by_gradless(body, engine.model.transform), InferenceRequest("classify", top_k=5))
        ).add_done_callback(answered)

    started_at = ended_at = perf_counter()
    with ThreadPoolExecutor(cores, initializer=use_one_core_in_this_thread) as pool:
        for body in cycle(bodies):
            places.acquire()
            pool.submit(decode_and_queue, body)
            ended_at = perf_counter()
            if ended_at - started_at > seconds and len(done_at) >= _LEAST_ANSWERS:
                break
    batcher.close()
    # From the first batch's end, a small one, to a batch's end: parts of batches would blur the rate of slow models.
    # What drains after the last image went in has the cores to itself, and does not count.
    counted = [moment for moment in done_at if moment <= ended_at]
    return (len(counted) - 1) / (counted[-1] - counted[0])


def _in_a_thread(work: Callable[[], None]) -> None:
    """Where the service runs forwards as well: the main thread's are not the same speed on every machine."""
    with ThreadPoolExecutor(1) as thread:
        thread.submit(work).result()


def main() -> None:
    """The command line, as benchmarks.in_process composes it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", required=True, help="a name of gradless's catalog")
    parser.add_argument("--backend", choices=["eager", "compiled", "openvino"], required=True)
    parser.add_argument("--precision", choices=["fp32", "bf16", "int8"], required=True)
    parser.add_argument("--calibration-folder", type=Path, required=True, help="images, for int8 alone")
    parser.add_argument("--seconds", type=float, required=True)
    parser.add_argument("bodies", type=Path, nargs="+", help="JPEG files")
    wanted = parser.parse_args()
    bodies = [path.read_bytes() for path in wanted.bodies]
    memory.retain_freed_pages()
    calibration = Calibration.of(wanted.calibration_folder) if wanted.precision == "int8" else None
    model = load(catalog.find(wanted.model), backends.place("cpu", wanted.precision, wanted.backend), calibration)
    engine = Engine(model, backends.make(model, BackendOptions(max_batch_size=_MAX_BATCH_SIZE, cache_folder=CACHE)))
    ways: dict[Ceiling, Callable[[], dict[str, float]]] = {
        "decoding": lambda: {"per_second": decoding_alone(bodies, model.transform, wanted.seconds)},
        "together": lambda: {"per_second": together(bodies, engine, wanted.seconds)},
        "alone": lambda: _with_rate(latency_summary(one_at_a_time(bodies, engine, wanted.seconds))),
    }
    _say("ready")
    for line in sys.stdin:
        _say(json.dumps(ways[cast("Ceiling", line.strip())]()))


def _with_rate(latencies_ms: dict[str, float]) -> dict[str, float]:
    return {"per_second": 1e3 / latencies_ms["mean_ms"], **latencies_ms}


def _say(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
