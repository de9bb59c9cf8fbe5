"""Measure this machine without HTTP, in a process for each engine: decoding; decode and forward on all cores; one image
after another. Prints `ready`, then measures the ceiling that each input line names and prints a line of JSON: images a
second, and latencies for one image at a time."""

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
from models.images.preprocessing import Transform
from models.inference.engine import Engine
from models.inference.image_job import BatchItem, ItemOutput
from models.interface.request import InferenceRequest
from models.loading import catalog
from models.loading.calibration import Calibration
from models.loading.load import load
from models.scheduling.batcher import Batcher

_MAX_BATCH_SIZE = 32

# Twice the largest batch: one in the forward, one in the decode.
_IN_FLIGHT = 64

# Warm-up of decoding.
_WARM_UP_S = 0.5

# The last batches take a second or two.
_CLOSE_TIMEOUT_S = 60.0

_LEAST_ANSWERS = 4 * _MAX_BATCH_SIZE

# gradless's cache: OpenVINO's conversion takes seconds, and the servers have made it already.
CACHE = Path("~/.cache/gradless").expanduser()


def decoding_alone(bodies: Sequence[bytes], transform: Transform, seconds: float) -> float:
    """Return the images a second that all cores decode, after the warm-up."""
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
    """Return latencies in ms of decode and forward, one image after another on an idle machine."""
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
    """Return images a second through a decode pool and the batcher, both always busy."""
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
        max_concurrent_batches=engine.hints.max_concurrent_batches,
        overlap_min_size=engine.hints.overlap_min_size,
        prepare=prepare,
    )

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
    batcher.close(_CLOSE_TIMEOUT_S)
    # From the end of the first (small) batch to the end of another, because parts of batches would blur slow rates.
    # Batches after the last submission have the cores to themselves and do not count.
    counted = [moment for moment in done_at if moment <= ended_at]
    return (len(counted) - 1) / (counted[-1] - counted[0])


def _in_a_thread(work: Callable[[], None]) -> None:
    """Run in a thread other than the main one, as the service does; their speeds differ on some machines."""
    with ThreadPoolExecutor(1) as thread:
        thread.submit(work).result()


def main() -> None:
    """Run with arguments from benchmarks.in_process."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", required=True, help="a name of gradless's catalog")
    parser.add_argument("--backend", choices=["eager", "compiled", "openvino"], required=True)
    parser.add_argument("--precision", choices=["fp32", "bf16", "int8"], required=True)
    parser.add_argument("--calibration-folder", type=Path, required=True, help="images, for int8 only")
    parser.add_argument("--seconds", type=float, required=True)
    parser.add_argument("bodies", type=Path, nargs="+", help="JPEG files")
    options = parser.parse_args()
    bodies = [path.read_bytes() for path in options.bodies]
    memory.retain_freed_pages()
    calibration = Calibration.of(options.calibration_folder) if options.precision == "int8" else None
    model = load(catalog.find(options.model), backends.place("cpu", options.precision, options.backend), calibration)
    engine = Engine(model, backends.make(model, BackendOptions(max_batch_size=_MAX_BATCH_SIZE, cache_folder=CACHE)))
    ways: dict[Ceiling, Callable[[], dict[str, float]]] = {
        "decoding": lambda: {"per_second": decoding_alone(bodies, model.transform, options.seconds)},
        "together": lambda: {"per_second": together(bodies, engine, options.seconds)},
        "alone": lambda: _with_rate(latency_summary(one_at_a_time(bodies, engine, options.seconds))),
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
