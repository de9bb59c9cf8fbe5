"""A photograph much larger than the network's input is decoded at a fraction of its size, to the same answer."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from models.images.preprocessing import Transform, decode_image, pixels_needed, preprocess
from models.images.samples import draw
from models.interface.request import ImageLimits


@pytest.mark.parametrize(
    ("size", "reduced"),
    [
        ((500, 375), (500, 375)),
        ((1000, 800), (1000, 800)),
        ((1024, 2048), (512, 1024)),
        ((4000, 3000), (1000, 750)),
        ((2000, 1500), (1000, 750)),
    ],
)
def test_the_shorter_side_stays_enough(
    image_file: Callable[..., bytes], size: tuple[int, int], reduced: tuple[int, int]
) -> None:
    encoded = image_file(draw("clock").resize(size), "JPEG")
    height, width = decode_image(encoded, ImageLimits(), enough=512).shape[1:]
    assert (width, height) == reduced


def test_a_reduced_picture_resembles_the_resized_full_one(image_file: Callable[..., bytes]) -> None:
    picture = draw("traffic-light").resize((2048, 2048), Image.Resampling.BICUBIC)
    encoded = image_file(picture, "JPEG", quality=95)
    reduced = decode_image(encoded, ImageLimits(), enough=512).permute(1, 2, 0).numpy()
    expected = np.asarray(picture.resize((512, 512), Image.Resampling.BOX), dtype=float)
    assert np.abs(reduced - expected).mean() < 2


@pytest.mark.parametrize("size", [(2751, 2101), (4201, 4001)])
def test_a_network_gets_nearly_the_same_pixels_of_a_reduced_picture(
    image_file: Callable[..., bytes], size: tuple[int, int]
) -> None:
    # Lines, the hardest case, and sides that no reduction divides: each pixel would move by a part of one.
    encoded = image_file(draw("crossword").resize(size, Image.Resampling.BICUBIC), "JPEG", quality=90)
    transform = Transform(256, 224, "bicubic", (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
    reduced, exact = (
        preprocess(encoded, each, ImageLimits()) for each in (transform, replace(transform, exact_jpeg=True))
    )
    assert (reduced.int() - exact.int()).abs().max() <= 3


def test_a_rotated_photograph_is_reduced_and_then_rotated(image_file: Callable[..., bytes]) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    encoded = image_file(draw("clock").resize((4000, 3000)), "JPEG", exif=exif)
    assert decode_image(encoded, ImageLimits(), enough=512).shape == (3, 1000, 750)


def test_a_model_that_asks_for_exact_jpegs_gets_them_from_their_full_size(image_file: Callable[..., bytes]) -> None:
    encoded = image_file(draw("traffic-light").resize((2400, 2000)), "JPEG", quality=90)
    reduced = Transform(64, 56, "bilinear", (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
    exact = replace(reduced, exact_jpeg=True)
    assert pixels_needed(exact) is None
    assert pixels_needed(reduced) == 4 * reduced.resize
    found, limits = preprocess(encoded, exact, ImageLimits()), ImageLimits()
    assert found.equal(exact.shape(decode_image(encoded, limits)))
    assert not found.equal(preprocess(encoded, reduced, limits))
