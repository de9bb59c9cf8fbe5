"""One shape for every forward: an image's answer does not depend on what it was batched with, to the last bit."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from models import backends
from models.backends import Backend, BackendOptions
from models.backends.backend import next_multiple, padded
from models.inference.engine import Engine
from models.inference.image_job import BatchItem
from models.interface.request import InferenceRequest
from models.loading.load import LoadedModel

# What features may differ by where batches have any shape, and kernels are chosen by it.
TOLERANCE = 1e-4


def placed(model: LoadedModel, backend: str) -> LoadedModel:
    return dataclasses.replace(model, placement=backends.place("cpu", "fp32", backend))


@pytest.fixture(scope="module")
def pixels(default_model: LoadedModel) -> torch.Tensor:
    side = default_model.transform.crop
    noise = torch.randint(0, 256, (9, 3, side, side), dtype=torch.uint8, generator=torch.manual_seed(0))
    return noise.contiguous(memory_format=torch.channels_last)


@pytest.fixture(scope="module")
def make(default_model: LoadedModel, cache_folder: Path) -> Callable[..., Backend]:
    def of(name: str, **options: bool) -> Backend:
        return backends.make(
            placed(default_model, name), BackendOptions(max_batch_size=9, cache_folder=cache_folder, **options)
        )

    return of


@pytest.mark.parametrize("name", ["eager", "openvino"])
def test_with_a_fixed_shape_an_image_gives_the_same_bits_in_any_batch_at_any_position(
    make: Callable[..., Backend], pixels: torch.Tensor, name: str
) -> None:
    backend = make(name, fixed_shape=True)
    with torch.inference_mode():
        alone = [backend.run(pixels[number : number + 1]) for number in range(len(pixels))]

        @settings(
            max_examples=12,
            suppress_health_check=[HealthCheck.function_scoped_fixture],
        )
        @given(st.lists(st.integers(0, len(pixels) - 1), min_size=1, max_size=9))
        def holds(batch: list[int]) -> None:
            together = backend.run(pixels[batch])
            assert together.features.equal(torch.cat([alone[number].features for number in batch]))
            assert together.logits.equal(torch.cat([alone[number].logits for number in batch]))

        holds()


@pytest.mark.parametrize("name", ["eager", "openvino"])
def test_in_any_shape_it_gives_the_same_within_a_tolerance(
    make: Callable[..., Backend], default_model: LoadedModel, pixels: torch.Tensor, name: str
) -> None:
    engine = Engine(placed(default_model, name), make(name))
    alone = [engine.run([BatchItem(image, InferenceRequest("classify", top_k=5))])[0] for image in pixels]

    @settings(max_examples=12, suppress_health_check=[HealthCheck.function_scoped_fixture])
    @given(st.lists(st.integers(0, len(pixels) - 1), min_size=1, max_size=9))
    def holds(batch: list[int]) -> None:
        for number, output in zip(
            batch,
            engine.run([BatchItem(pixels[one], InferenceRequest("classify", top_k=5)) for one in batch]),
            strict=True,
        ):
            assert output.features == pytest.approx(alone[number].features, abs=TOLERANCE)
            assert output.probabilities == pytest.approx(alone[number].probabilities, abs=TOLERANCE)

    holds()


def test_padding_keeps_the_images_and_adds_blank_ones(pixels: torch.Tensor) -> None:
    whole = padded(pixels[:3], 8)
    assert whole[:3].equal(pixels[:3])
    assert not whole[3:].any()
    assert whole.is_contiguous(memory_format=torch.channels_last)
    assert padded(pixels[:3], 3) is not None
    assert [next_multiple(count, 4) for count in (1, 4, 5)] == [4, 4, 8]
