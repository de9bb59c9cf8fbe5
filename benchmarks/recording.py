"""Measure the gain of recording a forward as a CUDA graph (models/backends/recorded.py): batches in process from pixels
to top-5, with kernels launched one by one and recorded.

python -m benchmarks.recording
"""

from __future__ import annotations

import sys
from statistics import quantiles
from time import perf_counter

import torch

from models import backends
from models.backends import Backend, BackendOptions
from models.backends.pytorch import EagerBackend
from models.backends.recorded import RecordedBackend
from models.inference.engine import Engine
from models.inference.image_job import BatchItem
from models.interface.model_sources import Precision
from models.interface.request import InferenceRequest
from models.loading import catalog
from models.loading.load import load

_PRECISIONS: tuple[Precision, ...] = ("fp32", "bf16", "fp16")
_SIZES = (1, 8, 32)
_ROUNDS = 60


def main() -> None:
    if not torch.cuda.is_available():
        sys.exit("PyTorch finds no CUDA device here")
    print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}, medians of {_ROUNDS} (quartiles), ms\n")  # noqa: T201
    print("| precision | images | one by one | recorded | ratio | images/s, recorded |")  # noqa: T201
    print("|---|---|---|---|---|---|")  # noqa: T201
    for precision in _PRECISIONS:
        engines = _engines(precision)
        for size in _SIZES:
            one_by_one, recorded = _quartiles_ms(engines, size)
            print(  # noqa: T201 - what it is for
                f"| {precision} | {size} | {_told(one_by_one)} | {_told(recorded)} | "
                f"{one_by_one[1] / recorded[1]:.1f} | {size / recorded[1] * 1e3:.0f} |",
                flush=True,
            )


def _engines(precision: Precision) -> list[Engine]:
    model = load(catalog.find(catalog.DEFAULT_MODEL), backends.place("cuda", precision, "eager"))
    largest = max(_SIZES)
    made: list[Backend] = [
        EagerBackend(model, BackendOptions(max_batch_size=largest)),
        RecordedBackend(model, BackendOptions(max_batch_size=largest)),
    ]
    engines = [Engine(model, backend) for backend in made]
    for engine in engines:
        engine.prepare_thread()
        engine.warm_up()
    return engines


def _quartiles_ms(engines: list[Engine], size: int) -> list[list[float]]:
    side = engines[0].model.transform.crop
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (size, side, side, 3), dtype=torch.uint8, generator=generator)
    items = [BatchItem(image, InferenceRequest("classify", top_k=5)) for image in pixels.permute(0, 3, 1, 2)]
    for engine in engines:
        engine.run(items)
    # Alternately, so that other load affects all alike.
    rounds = [[_seconds(engine, items) for engine in engines] for _ in range(_ROUNDS)]
    return [[1e3 * quartile for quartile in quantiles(seconds, n=4)] for seconds in zip(*rounds, strict=True)]


def _seconds(engine: Engine, items: list[BatchItem]) -> float:
    started_at = perf_counter()
    engine.run(items)
    return perf_counter() - started_at


def _told(quartiles: list[float]) -> str:
    return f"{quartiles[1]:.2f} ({quartiles[0]:.2f}-{quartiles[2]:.2f})"


if __name__ == "__main__":
    main()
