"""Preprocessing is torchvision's own, to one level of 255: the geometry before the queue, the arithmetic after it."""

from __future__ import annotations

import pytest
import torch
import torchvision
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from PIL import Image
from timm.data.transforms_factory import transforms_imagenet_eval
from torchvision.transforms._presets import ImageClassification
from torchvision.transforms.v2 import InterpolationMode

from models.images import colour
from models.images.decode import Strips
from models.images.preprocessing import Normalize, Transform, decode_image, to_tensor
from models.interface.model_sources import Fit, Interpolation
from models.interface.request import ImageLimits
from models.loading import catalog
from models.loading.load import LoadedModel

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def random_image(height: int, width: int) -> torch.Tensor:
    return torch.randint(0, 256, (3, height, width), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def as_pillow(image: torch.Tensor) -> Image.Image:
    return Image.fromarray(image.permute(1, 2, 0).numpy())


@pytest.mark.parametrize("architecture", ["mobilenet_v3_small", "efficientnet_b0"])
def test_shape_and_normalize_together_are_the_preset_of_the_weights(architecture: str, clock_jpeg: bytes) -> None:
    preset = torchvision.models.get_model_weights(architecture).DEFAULT.transforms()
    transform = catalog.find(f"{architecture}:random").build().transform
    image = decode_image(clock_jpeg, ImageLimits())
    found = Normalize(transform)(transform.shape(image)[None])[0]
    one_level = 1 / 255 / min(transform.std)
    torch.testing.assert_close(found, preset(as_pillow(image)), atol=1.01 * one_level, rtol=0)


@settings(max_examples=40)
@given(st.integers(1, 300), st.integers(1, 300), st.sampled_from(["bilinear", "bicubic"]))
def test_shape_is_the_preset_to_one_level_on_pictures_of_any_size(
    height: int, width: int, interpolation: Interpolation
) -> None:
    # On a Pillow image: on tensors the presets keep fractions between their two passes, where 8 bits are cut off.
    assume(max(height, width) <= 50 * min(height, width))
    # Middle greys: where bicubic overshoots black or white, implementations cut it off after different passes.
    image = random_image(height, width) // 2 + 64
    mode = InterpolationMode(interpolation)
    # Without mean and deviation, the preset's result is the pixels themselves over 255.
    preset = ImageClassification(
        crop_size=32, resize_size=36, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0), interpolation=mode
    )
    shaped = Transform(36, 32, interpolation, MEAN, STD).shape(image)
    assert shaped.dtype == torch.uint8
    assert shaped.permute(1, 2, 0).is_contiguous()
    torch.testing.assert_close(shaped.float(), preset(as_pillow(image)) * 255, atol=1.01, rtol=0)


@pytest.mark.parametrize(("fit", "crop_mode"), [("crop", "center"), ("stretch", "squash"), ("pad", "border")])
@pytest.mark.parametrize(("resize", "crop_pct"), [(32, 1.0), (40, 0.8)])
@pytest.mark.parametrize("size", [(90, 60), (61, 200), (20, 11), (64, 64)])
def test_each_fit_is_the_crop_mode_of_timm_to_one_level(
    fit: Fit, crop_mode: str, resize: int, crop_pct: float, size: tuple[int, int]
) -> None:
    image = random_image(*size) // 2 + 64
    evaluated = transforms_imagenet_eval(
        32, crop_pct=crop_pct, crop_mode=crop_mode, interpolation="bilinear", mean=MEAN, normalize=False
    )
    shaped = Transform(resize, 32, "bilinear", MEAN, STD, fit).shape(image)
    assert shaped.permute(1, 2, 0).is_contiguous()
    torch.testing.assert_close(shaped.float(), evaluated(as_pillow(image)).float(), atol=1.01, rtol=0)


def test_normalize_is_pixels_over_255_less_mean_over_deviation() -> None:
    transform = Transform(36, 32, "bilinear", MEAN, STD)
    pixels = torch.arange(256, dtype=torch.uint8).repeat(3, 1).view(1, 3, 16, 16)
    mean = torch.tensor(MEAN, dtype=torch.float64).view(1, 3, 1, 1)
    std = torch.tensor(STD, dtype=torch.float64).view(1, 3, 1, 1)
    expected = (pixels.double() / 255 - mean) / std
    torch.testing.assert_close(Normalize(transform)(pixels).double(), expected, atol=1e-6, rtol=0)


def test_the_default_model_sees_pixels_less_127_over_128(default_model: LoadedModel) -> None:
    pixels = torch.tensor([0, 127, 255], dtype=torch.uint8).repeat(3, 1).view(1, 3, 1, 3)
    normalized = default_model.normalize(pixels)[0, 0, 0]
    torch.testing.assert_close(normalized, torch.tensor([-127 / 128, 0.0, 1.0]), atol=1e-6, rtol=0)


def strips_of(image: torch.Tensor, orientation: int = 1, rows: int = 7) -> Strips:
    pixels = image.permute(1, 2, 0).contiguous().numpy()
    height, width, _ = pixels.shape
    return Strips(height, width, orientation, (pixels[top : top + rows] for top in range(0, height, rows)))


@settings(max_examples=60)
@given(
    st.integers(1, 300),
    st.integers(1, 300),
    st.integers(1, 8),
    st.sampled_from(["bilinear", "bicubic"]),
    st.sampled_from(["crop", "stretch", "pad"]),
)
def test_a_picture_in_strips_becomes_what_the_whole_picture_does(
    height: int, width: int, orientation: int, interpolation: Interpolation, fit: Fit
) -> None:
    # Middle greys, as above.
    image = random_image(height, width) // 2 + 64
    transform = Transform(36, 32, interpolation, MEAN, STD, fit)
    whole = transform.shape(to_tensor(strips_of(image, orientation).assembled()))
    found = transform.shape_strips(strips_of(image, orientation))
    assert found.permute(1, 2, 0).is_contiguous()
    # Rows come first in both, except for a picture on its side. Mirrored rows are rounded alike up to one level.
    torch.testing.assert_close(found.float(), whole.float(), atol=0 if orientation in {1, 4} else 1, rtol=0)


@pytest.mark.parametrize("fit", ["crop", "stretch", "pad"])
@pytest.mark.parametrize("rows", [7, 300])
def test_colours_are_converted_after_the_crop_and_those_of_a_canvas_are_not(fit: Fit, rows: int) -> None:
    conversion, image = colour.from_primaries(9), random_image(120, 50)
    assert conversion is not None
    transform = Transform(36, 36, "bilinear", MEAN, STD, fit)
    plain = transform.shape_strips(strips_of(image, rows=rows)).permute(1, 2, 0).numpy()
    converted = transform.shape_strips(strips_of(image, rows=rows)._replace(conversion=conversion))
    expected = conversion.apply(plain)
    if fit == "pad":
        expected[:, :10], expected[:, 25:] = plain[:, :10], plain[:, 25:]
    assert (converted.permute(1, 2, 0).numpy() == expected).all()
