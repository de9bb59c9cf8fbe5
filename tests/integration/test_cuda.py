"""Tests that need CUDA: recorded forwards, batch threads with streams, memory counters."""

from __future__ import annotations

import asyncio
import gc
import re
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
from torch import nn

from gradless.records import ComparisonOptions
from models import backends
from models.backends import BackendOptions
from models.backends.pytorch import served_network
from models.hardware import memory
from models.hardware.placement import Precision
from models.images.preprocessing import Transform, decode_image
from models.images.samples import draw, encode
from models.inference.engine import Engine
from models.inference.image_job import BatchItem, ItemOutput
from models.interface.request import ImageLimits, InferenceRequest
from models.interface.telemetry import InstanceId, Telemetry
from models.loading import catalog
from models.loading.load import LoadedModel, load
from models.networks.network import FeaturesAndLogits
from models.networks.specs import Classifier, ModelSpec
from models.scheduling.oom_splitting import SplittingRun
from models.serving.lens import compare_served

if TYPE_CHECKING:
    from tests.integration.conftest import StartOverHttp

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="PyTorch finds no CUDA device here")

_PATIENCE_S = 60
_ROUNDS = 50

# Largest difference to the CPU's float32, relative to the largest output. Convolutions in fp32 round to TF32, whose
# mantissa is fp16's: that is PyTorch's own default.
# Of bf16 the same pictures show 0.19 on a CPU.
_TOLERANCES: dict[Precision, float] = {"fp32": 5e-3, "fp16": 1e-2, "bf16": 0.25}


@pytest.fixture(scope="module")
def pixels(default_model: LoadedModel) -> torch.Tensor:
    """(32, 3, 224, 224) uint8, channels last: the drawn samples, in more and more noise."""
    pictures = [draw("clock"), draw("traffic-light"), draw("crossword")]
    shaped = [default_model.transform.shape(decode_image(encode(each, "PNG"), ImageLimits())) for each in pictures]
    generator = torch.Generator().manual_seed(0)
    noisy = [
        (shaped[number % 3] + torch.randint(0, 1 + number, shaped[0].shape, generator=generator)).clamp(max=255)
        for number in range(32)
    ]
    return torch.stack(noisy).to(torch.uint8).contiguous(memory_format=torch.channels_last)


@pytest.fixture(scope="module")
def expected(default_model: LoadedModel, pixels: torch.Tensor) -> FeaturesAndLogits:
    with torch.inference_mode():
        answer: FeaturesAndLogits = default_model.network(default_model.normalize(pixels))
    return answer


@pytest.fixture(scope="module")
def cache_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def engine_of(cache_folder: Path) -> Callable[..., Engine]:
    """An engine of a spec, the embedded default's if none is given, on the GPU."""

    def make(
        spec: ModelSpec | None = None,
        precision: Precision = "fp32",
        backend: str = "eager",
        *,
        max_batch_size: int = 32,
        fixed_shape: bool = False,
    ) -> Engine:
        model = load(spec or catalog.find(catalog.DEFAULT_MODEL), backends.place("cuda", precision, backend))
        return Engine(
            model,
            backends.make(
                model, BackendOptions(max_batch_size=max_batch_size, cache_folder=cache_folder, fixed_shape=fixed_shape)
            ),
        )

    return make


@pytest.fixture(scope="module")
def default_on_gpu(engine_of: Callable[..., Engine]) -> Engine:
    return engine_of()


def _items(pixels: torch.Tensor) -> list[BatchItem]:
    return [BatchItem(image, InferenceRequest("classify", top_k=5)) for image in pixels]


def _features(engine: Engine, pixels: torch.Tensor) -> torch.Tensor:
    return torch.stack([torch.from_numpy(output.features) for output in engine.run(_items(pixels))])


def _is_recorded(engine: Engine, size: int) -> bool:
    """Return whether a forward of `size` images launches its kernels by one call, by the profiler."""
    side = engine.model.transform.crop
    blank = torch.zeros(size, side, side, 3, dtype=torch.uint8).permute(0, 3, 1, 2)
    engine.forward(blank)
    # Without this PyTorch 2.11 warns of a second cycle's events.
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], acc_events=True) as profiler:
        engine.forward(blank)
    return not any("conv" in event.name for event in profiler.events())


@pytest.mark.parametrize("precision", ["fp32", "fp16", "bf16"])
def test_each_precision_is_held_to_the_cpus_float32(
    engine_of: Callable[..., Engine], pixels: torch.Tensor, expected: FeaturesAndLogits, precision: Precision
) -> None:
    found = engine_of(precision=precision).forward(pixels)
    for got, want in zip(found, expected, strict=True):
        assert (got.float().cpu() - want).abs().max() <= _TOLERANCES[precision] * want.abs().max()
    agreement = (found.logits.argmax(1).cpu() == expected.logits.argmax(1)).float().mean()
    assert agreement >= 0.9


# PyTorch 2.11's compiler imports its own deprecated modules.
@pytest.mark.filterwarnings("ignore:.torch.jit.script:DeprecationWarning")
def test_the_compiled_network_is_recorded_as_well(
    engine_of: Callable[..., Engine], pixels: torch.Tensor, expected: FeaturesAndLogits
) -> None:
    engine = engine_of(backend="compiled", max_batch_size=4)
    assert _is_recorded(engine, 4)
    found = engine.forward(pixels[:4]).logits.cpu()
    assert (found - expected.logits[:4]).abs().max() <= _TOLERANCES["fp32"] * expected.logits.abs().max()


def test_batchnorms_are_folded_as_on_a_cpu(default_on_gpu: Engine) -> None:
    folded = served_network(default_on_gpu.model)
    assert not any(isinstance(module, nn.BatchNorm2d) for module in folded.modules())
    assert next(folded.parameters()).is_cuda


@pytest.mark.parametrize("size", [1, 3, 8, 31, 32])
def test_a_forward_of_any_size_is_launched_by_one_call(default_on_gpu: Engine, size: int) -> None:
    assert _is_recorded(default_on_gpu, size)


def test_a_batch_of_any_size_gives_the_results_of_its_single_images(
    default_on_gpu: Engine, pixels: torch.Tensor
) -> None:
    alone = torch.cat([_features(default_on_gpu, pixels[number : number + 1]) for number in range(len(pixels))])
    for size in (2, 3, 5, 8, 13, 32):
        together = _features(default_on_gpu, pixels[-size:])
        assert (together - alone[-size:]).abs().max() <= _TOLERANCES["fp32"] * alone.abs().max()


def test_two_concurrent_batches_get_their_own_answers(default_on_gpu: Engine, pixels: torch.Tensor) -> None:
    batches = [pixels[:32], pixels.flip(0)[:20]]
    alone = [_features(default_on_gpu, batch) for batch in batches]
    together = threading.Barrier(2)

    def run_many_times(number: int) -> None:
        for _ in range(_ROUNDS):
            together.wait(_PATIENCE_S)
            assert _features(default_on_gpu, batches[number]).equal(alone[number])

    with ThreadPoolExecutor(2, initializer=default_on_gpu.prepare_thread) as batch_threads:
        list(batch_threads.map(run_many_times, range(2)))


def test_with_a_fixed_shape_an_image_gives_the_same_bits_in_any_batch_at_any_position(
    engine_of: Callable[..., Engine], pixels: torch.Tensor
) -> None:
    engine = engine_of(max_batch_size=8, fixed_shape=True)
    alone = torch.cat([_features(engine, pixels[number : number + 1]) for number in range(len(pixels))])
    generator = np.random.default_rng(0)
    for _ in range(_ROUNDS):
        chosen = generator.integers(len(pixels), size=generator.integers(1, 9))
        assert _features(engine, pixels[chosen]).equal(alone[chosen])


class _Waits(nn.Module):
    """Reads a number from the device during a forward, which cannot be recorded."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return images * (1.0 if images.sum().item() > 0 else 2.0)


def test_a_network_that_waits_for_the_device_is_launched_kernel_by_kernel(
    engine_of: Callable[..., Engine], tiny: ModelSpec, caplog: pytest.LogCaptureFixture
) -> None:
    def build() -> Classifier:
        classifier = tiny.build()
        return replace(classifier, module=nn.Sequential(_Waits(), classifier.module))

    waiting = engine_of(ModelSpec("waiting", "waiting", build), max_batch_size=2)
    assert "kernels are launched one by one, since they could not be recorded" in caplog.text
    waiting.warm_up()
    assert not _is_recorded(waiting, 2)
    # The failure has no lasting effect: the next model is recorded, and both answer.
    after = engine_of(tiny, max_batch_size=2)
    assert _is_recorded(after, 2)
    images = torch.randint(0, 256, (2, 32, 32, 3), dtype=torch.uint8).permute(0, 3, 1, 2)
    side_by_side = [waiting, after]
    with ThreadPoolExecutor(2) as threads:
        first, second = threads.map(lambda engine: _features(engine, images), side_by_side)
    assert first.isfinite().all()
    assert second.isfinite().all()


def test_a_model_is_recorded_while_another_serves(engine_of: Callable[..., Engine], pixels: torch.Tensor) -> None:
    serving = engine_of(max_batch_size=8)
    expected = _features(serving, pixels[:8])
    over = threading.Event()

    def serve() -> int:
        serving.prepare_thread()
        batches = 0
        while not over.is_set():
            assert _features(serving, pixels[:8]).equal(expected)
            batches += 1
        return batches

    with ThreadPoolExecutor(1) as thread:
        batches = thread.submit(serve)
        try:
            other = engine_of(max_batch_size=8)
        finally:
            over.set()
    assert batches.result() > 0
    assert _is_recorded(other, 8)


def test_memory_does_not_grow_while_serving_and_an_unloaded_model_releases_all_of_it(
    engine_of: Callable[..., Engine], pixels: torch.Tensor
) -> None:
    gc.collect()
    device = torch.device("cuda")
    # What libraries keep for good is there by now.
    _features(engine_of(), pixels)
    gc.collect()
    before = memory.figures(device)["allocated"]
    engine = engine_of()
    _features(engine, pixels)
    warm = memory.figures(device)["allocated"]
    for size in range(1, 33):
        _features(engine, pixels[:size])
    assert memory.figures(device)["allocated"] == warm
    engine.close()
    del engine
    gc.collect()
    memory.trim(device)
    assert memory.figures(device)["allocated"] - before < 2**20


def test_a_batch_that_exceeds_the_device_memory_is_split(engine_of: Callable[..., Engine]) -> None:
    def build() -> Classifier:
        wide = [nn.Conv2d(3, 512, 1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()]
        transform = Transform(256, 256, "bilinear", mean=(0.5,) * 3, std=(0.5,) * 3)
        return Classifier(nn.Sequential(*wide, nn.Linear(512, 3)), transform, ("a", "b", "c"))

    # An image has 128 MiB behind the convolution and 128 behind the ReLU: there is room for 12, and none for 32.
    total = memory.figures(torch.device("cuda"))["total"]
    gc.collect()
    torch.cuda.empty_cache()
    torch.cuda.set_per_process_memory_fraction((torch.cuda.memory_reserved() + 3 * 2**30) / total)
    try:
        engine = engine_of(ModelSpec("wide", "wide", build))
        run = SplittingRun[BatchItem, ItemOutput](
            engine.run,
            instance=InstanceId("wide", "cuda"),
            out_of_memory=memory.ran_out,
            release_memory=lambda: memory.trim(torch.device("cuda")),
            telemetry=Telemetry(),
        )
        images = torch.randint(0, 256, (32, 256, 256, 3), dtype=torch.uint8).permute(0, 3, 1, 2)
        answers = run([BatchItem(image, InferenceRequest("classify", top_k=1)) for image in images])
        assert all(isinstance(answer, ItemOutput) for answer in answers)
        assert run.safe_size is not None
        assert 1 <= run.safe_size <= 16
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)


def test_the_lens_shows_the_cost_of_gradients_on_a_gpu(default_on_gpu: Engine) -> None:
    report = compare_served(default_on_gpu, ComparisonOptions(batch_size=8, iterations=2))
    arms = {each.arm: each for each in report.arms}
    assert arms["grad"].retained_bytes == pytest.approx(636e6, rel=0.02)
    assert arms["grad"].peak_bytes is not None
    assert arms["inference_mode"].peak_bytes is not None
    assert arms["inference_mode"].peak_bytes < arms["grad"].peak_bytes / 2
    assert all(arms[name].retained_bytes == 0 for name in arms if name != "grad")


@pytest.mark.anyio
async def test_the_service_answers_from_the_gpu_and_reports_it(
    over_http: StartOverHttp, tiny: ModelSpec, clock_png: bytes
) -> None:
    async with over_http(tiny, device="auto", max_batch_size=8) as http:
        answers = await asyncio.gather(
            *(http.post("/v1/classify", content=clock_png, headers={"content-type": "image/png"}) for _ in range(40))
        )
        assert {answer.status_code for answer in answers} == {200}
        probabilities = {answer.json()["results"][0]["predictions"][0]["probability"] for answer in answers}
        assert max(probabilities) - min(probabilities) < 1e-3
        exposition = (await http.get("/metrics")).text
        card = (await http.get("/v1/models/tiny")).json()
    assert card["device"].startswith("cuda")
    assert re.search(r'gradless_device_memory_bytes\{device="cuda[^}]*kind="peak"\} [1-9]', exposition)
