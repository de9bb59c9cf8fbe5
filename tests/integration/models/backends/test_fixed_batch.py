"""One shape for every forward: an image's answer does not depend on what it was batched with, to the last bit."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from models import backends
from models.backends import BackendOptions
from models.backends.backend import next_multiple, padded
from models.loading.load import LoadedModel


@pytest.fixture(scope="module")
def pixels(default_model: LoadedModel) -> torch.Tensor:
    side = default_model.transform.crop
    noise = torch.randint(0, 256, (9, 3, side, side), dtype=torch.uint8, generator=torch.manual_seed(0))
    return noise.contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("name", ["eager", "openvino"])
def test_with_a_fixed_shape_an_image_gives_the_same_bits_in_any_batch_at_any_position(
    default_model: LoadedModel, cache_folder: Path, pixels: torch.Tensor, name: str
) -> None:
    model = dataclasses.replace(default_model, placement=backends.place("cpu", "fp32", name))
    backend = backends.make(model, BackendOptions(max_batch_size=9, cache_folder=cache_folder, fixed_shape=True))
    with torch.inference_mode():
        alone = [backend.run(pixels[number : number + 1]) for number in range(len(pixels))]

        @settings(max_examples=6, suppress_health_check=[HealthCheck.function_scoped_fixture])
        @given(st.lists(st.integers(0, len(pixels) - 1), min_size=1, max_size=9))
        def holds(batch: list[int]) -> None:
            together = backend.run(pixels[batch])
            assert together.features.equal(torch.cat([alone[number].features for number in batch]))
            assert together.logits.equal(torch.cat([alone[number].logits for number in batch]))

        holds()


def test_padding_keeps_the_images_and_adds_blank_ones(pixels: torch.Tensor) -> None:
    whole = padded(pixels[:3], 8)
    assert whole[:3].equal(pixels[:3])
    assert not whole[3:].any()
    assert whole.is_contiguous(memory_format=torch.channels_last)
    assert padded(pixels[:3], 3) is not None
    assert [next_multiple(count, 4) for count in (1, 4, 5)] == [4, 4, 8]
