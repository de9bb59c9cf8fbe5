"""Any bytes give a (3, H, W) uint8 tensor within the limits, or an ImageError."""

from __future__ import annotations

from io import BytesIO

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from models.images.preprocessing import decode_image
from models.interface.errors import ImageError
from models.interface.request import ImageLimits
from reliability.profiles import of_tables

LIMITS = ImageLimits(max_pixels=1_000_000)

# Pillow warns of broken metadata in files that it reads none the less.
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:PIL")


def _file(picture: Image.Image, image_format: str, **options: object) -> bytes:
    file = BytesIO()
    picture.save(file, image_format, **options)
    return file.getvalue()


def _valid_files() -> list[bytes]:
    picture = Image.linear_gradient("L").resize((48, 40)).convert("RGB")
    exif = Image.Exif()
    exif[0x0112] = 6
    plain = [_file(picture, image_format) for image_format in ("GIF", "BMP", "TIFF", "AVIF", "HEIF")]
    turned = [_file(picture, image_format, exif=exif) for image_format in ("JPEG", "PNG", "WEBP", "TIFF")]
    modes = [_file(picture.convert(mode), "PNG") for mode in ("1", "LA", "P", "RGBA")]
    tiffs = [_file(picture, "TIFF", compression=name) for name in ("tiff_lzw", "tiff_adobe_deflate", "jpeg")]
    animated = [_file(picture, name, save_all=True, append_images=[picture.rotate(90)]) for name in ("GIF", "WEBP")]
    tables = of_tables(np.linspace(0, 90, 2**4 * 3).reshape(2, 2, 2, 2, 3))
    inks = [_file(picture.convert("CMYK"), name, icc_profile=tables) for name in ("JPEG", "TIFF")]
    return [*plain, *turned, *modes, *tiffs, *animated, *inks, _file(picture, "JPEG", progressive=True)]


FILES = _valid_files()
SIGNATURES = sorted({file[:16] for file in FILES})


@st.composite
def mutated_files(draw: st.DrawFn) -> bytes:
    """A valid file with a few bits flipped, bytes replaced, parts cut out, or a piece of another put in."""
    encoded = bytearray(draw(st.sampled_from(FILES)))
    for _ in range(draw(st.integers(1, 4))):
        if not encoded:
            break
        at = draw(st.integers(0, len(encoded) - 1))
        match draw(st.sampled_from(["flip", "replace", "cut", "truncate", "splice"])):
            case "flip":
                encoded[at] ^= 1 << draw(st.integers(0, 7))
            case "replace":
                piece = draw(st.sampled_from([b"\0\0\0\0", b"\xff\xff\xff\xff", b"\x7f\xff\xff\xff", b"\0\0\0\x80"]))
                encoded[at : at + 4] = piece
            case "cut":
                del encoded[at : at + draw(st.integers(1, 64))]
            case "truncate":
                del encoded[at:]
            case "splice":
                other = draw(st.sampled_from(FILES))
                start = draw(st.integers(0, len(other) - 1))
                encoded[at:at] = other[start : start + draw(st.integers(1, 256))]
    return bytes(encoded)


def _decodes_or_is_refused(encoded: bytes) -> None:
    try:
        pixels = decode_image(encoded, LIMITS)
    except ImageError:
        return
    assert pixels.dtype == torch.uint8
    assert pixels.ndim == 3
    assert pixels.shape[0] == 3
    assert 0 < pixels.shape[1] * pixels.shape[2] <= LIMITS.max_pixels


@pytest.mark.parametrize("encoded", FILES)
def test_the_files_that_are_mutated_are_valid(encoded: bytes) -> None:
    assert set(decode_image(encoded, LIMITS).shape) == {3, 40, 48}


@settings(max_examples=200)
@given(st.binary(max_size=512))
def test_any_bytes_decode_or_are_refused(encoded: bytes) -> None:
    _decodes_or_is_refused(encoded)


@settings(max_examples=200)
@given(st.sampled_from(SIGNATURES), st.binary(max_size=512))
def test_any_bytes_behind_a_signature_decode_or_are_refused(signature: bytes, rest: bytes) -> None:
    _decodes_or_is_refused(signature + rest)


@settings(max_examples=400)
@given(mutated_files())
def test_a_damaged_file_decodes_or_is_refused(encoded: bytes) -> None:
    _decodes_or_is_refused(encoded)
