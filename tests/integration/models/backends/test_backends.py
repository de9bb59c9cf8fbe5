"""Each way to run a forward is held to PyTorch's own float32 one on the network as its makers wrote it."""

from __future__ import annotations

import dataclasses
import functools
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from openvino import Core, InferRequest

from models import backends
from models.backends import BackendOptions, openvino, place
from models.backends.backend import Backend, buckets
from models.backends.folding import folded
from models.backends.openvino import OpenVinoBackend
from models.hardware import cores
from models.hardware.placement import Precision
from models.images.preprocessing import decode_image
from models.images.samples import draw, encode
from models.interface.errors import DeviceUnavailableError
from models.interface.request import CancelToken, ImageLimits
from models.loading.load import LoadedModel, load
from models.networks.network import FeaturesAndLogits, Network
from models.networks.specs import ModelSpec

_PATIENCE_S = 30


@pytest.fixture(scope="session")
def pixels(default_model: LoadedModel) -> torch.Tensor:
    """(5, 3, 224, 224) uint8, channels last: the drawn samples, and two of them upside down."""
    drawn = [draw("clock"), draw("traffic-light"), draw("crossword")]
    pictures = [*drawn, *(picture.rotate(180) for picture in drawn[:2])]
    shaped = [
        default_model.transform.shape(decode_image(encode(picture, "PNG"), ImageLimits())) for picture in pictures
    ]
    return torch.stack(shaped).contiguous(memory_format=torch.channels_last)


@pytest.fixture(scope="session")
def run(default_model: LoadedModel, cache_folder: Path) -> Callable[..., FeaturesAndLogits]:
    """Run pixels through the default model by a backend and precision, in float32 afterwards."""

    @functools.cache
    def made(backend: str, precision: Precision) -> Backend:
        model = dataclasses.replace(default_model, placement=place("cpu", precision, backend))
        return backends.make(model, BackendOptions(max_batch_size=8, cache_folder=cache_folder))

    def run(pixels: torch.Tensor, backend: str, precision: Precision) -> FeaturesAndLogits:
        with torch.inference_mode():
            return FeaturesAndLogits(*(output.float() for output in made(backend, precision).run(pixels)))

    return run


def reference(model: LoadedModel, pixels: torch.Tensor) -> FeaturesAndLogits:
    with torch.inference_mode():
        answer: FeaturesAndLogits = model.network(model.normalize(pixels))
    return answer


def largest_difference(found: torch.Tensor, expected: torch.Tensor) -> float:
    """Relative to the largest number expected."""
    return ((found - expected).abs().max() / expected.abs().max()).item()


with_bf16 = pytest.mark.skipif(
    "BF16" not in Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES"),
    reason="OpenVINO does not compute in bf16 on this processor",
)


# float32 differs by the order of additions alone; bfloat16 has 8 bits of mantissa, and errors of layers add up.
@pytest.mark.parametrize(
    ("backend", "precision", "tolerance"),
    [
        ("eager", "fp32", 1e-5),
        ("openvino", "fp32", 1e-5),
        ("eager", "bf16", 0.1),
        pytest.param("openvino", "bf16", 0.1, marks=with_bf16),
    ],
)
def test_a_backend_gives_the_outputs_of_the_network(
    run: Callable[..., FeaturesAndLogits],
    default_model: LoadedModel,
    pixels: torch.Tensor,
    backend: str,
    precision: Precision,
    tolerance: float,
) -> None:
    found, expected = run(pixels, backend, precision), reference(default_model, pixels)
    assert largest_difference(found.features, expected.features) < tolerance
    assert largest_difference(found.logits, expected.logits) < tolerance
    assert found.logits.argmax(1)[:3].equal(expected.logits.argmax(1)[:3])


def test_openvino_refuses_a_precision_that_the_processor_lacks(
    default_model: LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(openvino, "_core", lambda: SimpleNamespace(get_property=lambda *_: ["FP32"]))
    model = dataclasses.replace(default_model, placement=place("cpu", "bf16", "openvino"))

    with pytest.raises(DeviceUnavailableError, match="not compute in bf16 on this processor; use fp32 or"):
        OpenVinoBackend(model, BackendOptions())


@pytest.mark.parametrize("backend", ["eager", "openvino"])
@pytest.mark.parametrize("size", [1, 2, 3, 5, 6, 7, 8, 37])
def test_batches_of_every_size_are_answered_row_by_row(
    run: Callable[..., FeaturesAndLogits],
    default_model: LoadedModel,
    pixels: torch.Tensor,
    backend: str,
    size: int,
) -> None:
    many = pixels.repeat(8, 1, 1, 1)[:size].contiguous(memory_format=torch.channels_last)
    found, expected = run(many, backend, "fp32"), reference(default_model, pixels)
    assert found.features.shape == (size, 1280)
    for row in range(size):
        assert largest_difference(found.features[row], expected.features[row % len(pixels)]) < 1e-4
        assert largest_difference(found.logits[row], expected.logits[row % len(pixels)]) < 1e-4


@pytest.fixture
def on_two_cores(default_model: LoadedModel, cache_folder: Path, monkeypatch: pytest.MonkeyPatch) -> OpenVinoBackend:
    """Of the default model, for batches of up to eight. Where there are fewer cores, nothing runs side by side."""
    model = dataclasses.replace(default_model, placement=place("cpu", "fp32", "openvino"))
    monkeypatch.setattr(cores, "available_cores", lambda: 2)
    return OpenVinoBackend(model, BackendOptions(max_batch_size=8, cache_folder=cache_folder))


def test_a_failed_piece_fails_only_its_batch_after_the_concurrent_pieces_have_ended(
    on_two_cores: OpenVinoBackend, pixels: torch.Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    many = pixels[:4].contiguous(memory_format=torch.channels_last)
    with torch.inference_mode():
        before = on_two_cores.run(many)
        start, started = InferRequest.start_async, []

        def start_all_but_the_second(request: InferRequest, pieces: list[Any], **options: Any) -> None:
            started.append(request)
            if len(started) == 2:
                raise MemoryError
            start(request, pieces, **options)

        with monkeypatch.context() as broken:
            broken.setattr(InferRequest, "start_async", start_all_but_the_second)
            with pytest.raises(MemoryError):
                on_two_cores.run(many)
        assert len(started) == 2
        # Zero checks without waiting; an abandoned request raises an exception.
        with pytest.raises(RuntimeError, match="canceled"):
            started[0].wait_for(0)
        assert on_two_cores.run(many).logits.equal(before.logits)


def test_while_another_batch_runs_openvino_runs_no_image_on_all_cores(
    on_two_cores: OpenVinoBackend, pixels: torch.Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    three = pixels[:3].contiguous(memory_format=torch.channels_last)
    begun, may_end = threading.Event(), threading.Event()
    ran: list[tuple[str, int]] = []

    def noting(name: str) -> Callable[..., None]:
        run = getattr(InferRequest, name)

        def note(request: InferRequest, pieces: list[Any], **options: Any) -> None:
            ran.append((name, len(pieces[0])))
            run(request, pieces, **options)

        return note

    class Hold(CancelToken):
        """A token that is never cancelled, and whose first check blocks the batch."""

        def raise_if_cancelled(self) -> None:
            begun.set()
            assert may_end.wait(_PATIENCE_S)

    with torch.inference_mode(), ThreadPoolExecutor(1) as other:
        alone = on_two_cores.run(three)
        for name in ("infer", "start_async"):
            monkeypatch.setattr(InferRequest, name, noting(name))
        on_two_cores.run(three)
        assert ran == [("start_async", 1), ("start_async", 1), ("infer", 1)]
        running = other.submit(on_two_cores.run, three[:2].contiguous(memory_format=torch.channels_last), Hold())
        assert begun.wait(_PATIENCE_S)
        ran.clear()
        alongside = on_two_cores.run(three)
        assert ran == [("start_async", 2), ("start_async", 1)]
        may_end.set()
        running.result(_PATIENCE_S)
    assert largest_difference(alongside.logits, alone.logits) < 1e-4


def test_answers_of_one_batch_are_not_overwritten_by_the_next(
    default_model: LoadedModel, cache_folder: Path, pixels: torch.Tensor
) -> None:
    model = dataclasses.replace(default_model, placement=place("cpu", "fp32", "openvino"))
    backend = OpenVinoBackend(model, BackendOptions(max_batch_size=8, cache_folder=cache_folder))
    with torch.inference_mode():
        first = backend.run(pixels[:1])
        before = first.features.clone()
        backend.run(pixels[1:2])
    assert first.features.equal(before)


def test_folding_leaves_no_batchnorm_and_the_same_answers(default_model: LoadedModel, pixels: torch.Tensor) -> None:
    images = default_model.normalize(pixels)
    fused = folded(default_model.network, images)
    norms = [module for module in fused.modules() if isinstance(module, torch.nn.BatchNorm2d)]
    assert norms == []
    with torch.no_grad():
        assert largest_difference(fused(images).logits, default_model.network(images).logits) < 1e-4


def test_a_batchnorm_whose_convolution_is_used_elsewhere_too_is_not_folded() -> None:
    class Shared(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.norm = torch.nn.Conv2d(3, 4, 1), torch.nn.BatchNorm2d(4)
            self.norm.running_mean += 3  # type: ignore[operator]  # a Tensor: statistics are tracked
            self.first, self.after = torch.nn.Conv2d(3, 3, 1), torch.nn.BatchNorm2d(3)

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            convolved = self.conv(self.after(self.first(images)))
            return (convolved + self.norm(convolved)).mean((2, 3))

    network, images = (
        Network(Shared(), torch.nn.Linear(4, 2), feature_shape=(4,), classes=2).eval(),
        torch.rand(2, 3, 8, 8),
    )
    with torch.no_grad():
        fused = folded(network, images)
        torch.testing.assert_close(fused(images), network(images), atol=1e-5, rtol=1e-5)
    # The other one is folded all the same.
    assert [name for name, module in fused.named_modules() if isinstance(module, torch.nn.BatchNorm2d)] == ["body.norm"]


def test_a_convolution_with_output_changed_in_place_is_not_folded() -> None:
    network = Network(
        torch.nn.Sequential(
            torch.nn.Conv2d(3, 4, 1),
            torch.nn.ReLU(inplace=True),
            torch.nn.BatchNorm2d(4),
            torch.nn.Conv2d(4, 4, 1),
            torch.nn.BatchNorm2d(4),
            torch.nn.AdaptiveAvgPool2d(1),
            torch.nn.Flatten(),
        ),
        torch.nn.Linear(4, 2),
        feature_shape=(4,),
        classes=2,
    ).eval()
    # Frozen, as after some fine-tuning.
    network.requires_grad_(requires_grad=False)
    images = torch.rand(2, 3, 8, 8)
    fused = folded(network, images)
    with torch.no_grad():
        torch.testing.assert_close(fused(images), network(images), atol=1e-5, rtol=1e-5)
    assert [name for name, module in fused.named_modules() if isinstance(module, torch.nn.BatchNorm2d)] == ["body.2"]


def test_a_batchnorm_before_a_convolution_is_not_taken_for_one_after_it() -> None:
    class NormFirst(torch.nn.Module):
        """Each BatchNorm takes a temporary tensor, whose address a later convolution's output may reuse."""

        def __init__(self) -> None:
            super().__init__()
            self.norms = torch.nn.ModuleList(torch.nn.BatchNorm2d(size) for size in range(3, 11))
            self.convs = torch.nn.ModuleList(torch.nn.Conv2d(size, size + 1, 1) for size in range(3, 11))

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            for norm, conv in zip(self.norms, self.convs, strict=True):
                images = norm(images.relu())
                images = conv(images)
            return images.mean((2, 3))

    network, images = (
        Network(NormFirst(), torch.nn.Linear(11, 2), feature_shape=(11,), classes=2).eval(),
        torch.rand(2, 3, 8, 8),
    )
    with torch.no_grad():
        torch.testing.assert_close(folded(network, images)(images), network(images), atol=1e-5, rtol=1e-5)
    assert sum(isinstance(module, torch.nn.BatchNorm2d) for module in folded(network, images).modules()) == 8


def test_the_served_copy_is_folded_and_the_loaded_network_is_not(
    default_model: LoadedModel, run: Callable[..., FeaturesAndLogits], pixels: torch.Tensor
) -> None:
    names = list(default_model.network.state_dict())
    run(pixels, "eager", "bf16")
    assert list(default_model.network.state_dict()) == names
    assert all(parameter.dtype == torch.float32 for parameter in default_model.network.parameters())


def test_the_second_start_reads_the_conversion_of_the_first(
    tiny: ModelSpec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = load(tiny, place("cpu", "fp32", "openvino"))
    conversions: list[Any] = []
    convert = torch.export.export
    monkeypatch.setattr(torch.export, "export", lambda *args, **kw: conversions.append(None) or convert(*args, **kw))
    for _ in range(2):
        OpenVinoBackend(model, BackendOptions(max_batch_size=2, cache_folder=tmp_path / "new"))
    assert len(conversions) == 1

    # What the fingerprint covers has an entry of its own.
    with torch.no_grad():
        model.network.head.bias += 1
    OpenVinoBackend(model, BackendOptions(max_batch_size=2, cache_folder=tmp_path / "new"))
    assert len(conversions) == 2


def test_compiled_pads_to_a_bucket_and_compiles_nothing_after_that_buckets_first_run(
    tiny: ModelSpec, tmp_path: Path
) -> None:
    model = load(tiny, place("cpu", "fp32", "compiled"))
    backend = backends.make(model, BackendOptions(max_batch_size=4, cache_folder=tmp_path))
    assert backend.hints.warm_up_sizes == (1, 2, 4)
    pixels = torch.randint(0, 256, (4, 3, 32, 32), dtype=torch.uint8)
    with torch.inference_mode():
        backend.run(pixels)
        with torch.compiler.set_stance("fail_on_recompile"):
            found = backend.run(pixels[:3])
        expected = model.network(model.normalize(pixels[:3]))
    assert largest_difference(found.features, expected.features) < 1e-4
    assert largest_difference(found.logits, expected.logits) < 1e-4


@pytest.mark.parametrize(
    ("largest", "sizes"),
    [(1, (1,)), (2, (1, 2)), (3, (1, 2, 3)), (32, (1, 2, 4, 8, 16, 32)), (33, (1, 2, 4, 8, 16, 32, 33))],
)
def test_buckets_are_the_powers_of_two_and_the_largest_batch(largest: int, sizes: tuple[int, ...]) -> None:
    assert buckets(largest) == sizes


def test_a_precision_that_a_cpu_lacks_is_refused() -> None:
    with pytest.raises(DeviceUnavailableError, match="fp16 is for GPUs"):
        place("cpu", "fp16", "eager")
