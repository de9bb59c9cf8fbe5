"""What this machine gives without HTTP, in a process of its own for each row: decoding alone; decode and forward
together on all cores; one image after another. Prints one line of JSON for each."""

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

import torch

from benchmarks.statistic import latency_summary
from models import backends, catalog, devices
from models.batching import Batcher
from models.engine import Engine, Item, Output
from models.images import decode_image
from models.limits import ImageLimits
from models.loading import load
from models.transforms import Transform

_MAX_BATCH_SIZE = 32

# Twice the largest batch: one in the forward, one being decoded.
_IN_FLIGHT = 64

_LEAST_ANSWERS = 4 * _MAX_BATCH_SIZE

_LIMITS = ImageLimits()

# gradless's own: converting for OpenVINO takes seconds, and the servers have done it already.
_CACHE = Path("~/.cache/gradless")


def decode(encoded: bytes, transform: Transform) -> torch.Tensor:
    """As the service does it: reduced where the file is much larger than what is needed."""
    return transform.shape(decode_image(encoded, _LIMITS, enough=2 * transform.resize))


def decoding_alone(bodies: Sequence[bytes], transform: Transform, seconds: float) -> float:
    """Images a second that all cores decode."""
    cores = devices.available_cores()
    deadline = perf_counter() + seconds

    def work() -> int:
        done = 0
        for body in cycle(bodies):
            decode(body, transform)
            done += 1
            if perf_counter() > deadline:
                break
        return done

    with ThreadPoolExecutor(cores, initializer=devices.use_one_core_in_this_thread) as pool:
        workers = [pool.submit(work) for _ in range(cores)]
        return sum(worker.result() for worker in workers) / seconds


def one_at_a_time(bodies: Sequence[bytes], engine: Engine, seconds: float) -> list[float]:
    """Latencies in ms of decode and forward, one image after another, with nothing else going on."""
    latencies_ms: list[float] = []

    def work() -> None:
        devices.use_cores_in_this_thread(devices.available_cores())
        engine.warm_up()
        deadline = perf_counter() + seconds
        for body in cycle(bodies):
            started_at = perf_counter()
            engine.run([Item(decode(body, engine.model.transform), 5)])
            latencies_ms.append((perf_counter() - started_at) * 1e3)
            if perf_counter() > deadline:
                break

    _in_a_thread(work)
    return latencies_ms


def together(bodies: Sequence[bytes], engine: Engine, seconds: float) -> float:
    """Images a second through a decode pool and the batcher, with always enough under way."""
    cores = devices.available_cores()
    places = threading.Semaphore(_IN_FLIGHT)
    done_at: list[float] = []

    def prepare() -> None:
        devices.use_cores_in_this_thread(cores)
        engine.warm_up()

    def answered(_: object) -> None:
        done_at.append(perf_counter())
        places.release()

    batcher: Batcher[Item, Output] = Batcher(
        engine.run, name="ceiling", max_batch_size=_MAX_BATCH_SIZE, queue_capacity=_IN_FLIGHT, prepare=prepare
    )
    batcher.wait_until_ready()

    def decode_and_queue(body: bytes) -> None:
        batcher.submit(Item(decode(body, engine.model.transform), 5)).add_done_callback(answered)

    started_at = ended_at = perf_counter()
    with ThreadPoolExecutor(cores, initializer=devices.use_one_core_in_this_thread) as pool:
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
    """The command line, as benchmarks.rounds composes it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", required=True, help="a name of gradless's catalog")
    parser.add_argument("--backend", choices=["eager", "compiled", "openvino"], required=True)
    parser.add_argument("--precision", choices=["fp32", "bf16"], required=True)
    parser.add_argument("--seconds", type=float, required=True)
    parser.add_argument("bodies", type=Path, nargs="+", help="JPEG files")
    wanted = parser.parse_args()
    bodies = [path.read_bytes() for path in wanted.bodies]
    devices.keep_freed_memory()
    model = load(catalog.find(wanted.model), devices.place("cpu", wanted.precision, wanted.backend))
    engine = Engine(model, backends.make(model, max_batch_size=_MAX_BATCH_SIZE, cache_folder=_CACHE.expanduser()))
    report = {
        "decoding_per_second": decoding_alone(bodies, model.transform, wanted.seconds),
        "together_per_second": together(bodies, engine, wanted.seconds),
        "alone": latency_summary(one_at_a_time(bodies, engine, wanted.seconds)),
    }
    sys.stdout.write(json.dumps(report) + "\n")


if __name__ == "__main__":
    main()
