"""Colours are converted to sRGB as LittleCMS does it, where a profile changes them, and left alone elsewhere."""

from __future__ import annotations

import io
import struct
from collections.abc import Callable

import numpy as np
import pytest
from PIL import Image, ImageCms

from models.images import colour
from models.images.colour import Conversion
from models.images.decode import Strips, decode_pixels
from models.images.decoder_process import DecoderProcess
from models.images.formats import PILLOW_NAMES, predict_cost
from models.interface.request import ImageLimits

_LIMITS = ImageLimits()

# Red, green and blue in XYZ relative to D50, and a curve: of Display P3, Adobe RGB and a screen of gamma 2.2.
_P3 = ((0.51512, 0.24120, -0.00105), (0.29198, 0.69225, 0.04189), (0.15710, 0.06657, 0.78407))
_ADOBE = ((0.60974, 0.31111, 0.01947), (0.20528, 0.62567, 0.06087), (0.14919, 0.06322, 0.74457))
_SRGB = ((0.43607, 0.22249, 0.01392), (0.38515, 0.71687, 0.09708), (0.14307, 0.06061, 0.71410))


def _fixed(*numbers: float) -> bytes:
    return struct.pack(f">{len(numbers)}i", *(round(each * 65_536) for each in numbers))


def _para(form: int, *numbers: float) -> bytes:
    return b"para" + bytes(4) + struct.pack(">HH", form, 0) + _fixed(*numbers)


def _curv(*points: int) -> bytes:
    return b"curv" + bytes(4) + struct.pack(f">I{len(points)}H", len(points), *points)


_SRGB_CURVE = _para(3, 2.4, 1 / 1.055, 0.055 / 1.055, 1 / 12.92, 0.04045)
_CURVES = {
    "form 0": _para(0, 1.8),
    "form 1": _para(1, 2.0, 0.9, 0.1),
    "form 2": _para(2, 2.0, 0.9, 0.05, 0.05),
    "form 3": _SRGB_CURVE,
    "form 4": _para(4, 2.4, 1 / 1.055, 0.055 / 1.055, 1 / 12.92, 0.04045, 0.0, 0.0),
    "gamma": _curv(round(2.2 * 256)),
    "points": _curv(*(round(65_535 * (step / 99) ** 2.2) for step in range(100))),
}


def profile(colorants: tuple[tuple[float, float, float], ...], curve: bytes, *, space: bytes = b"RGB ") -> bytes:
    """A profile of a screen (ICC.1:2022, 8.4.3), version 4."""
    tags = {b"wtpt": b"XYZ " + bytes(4) + _fixed(0.9642, 1.0, 0.8249), b"cprt": b"mluc" + bytes(12)}
    tags[b"desc"] = b"mluc" + bytes(4) + struct.pack(">II2sHII", 1, 12, b"en", ord("U"), 2, 28) + b"\0x"
    tags |= {
        name: b"XYZ " + bytes(4) + _fixed(*each)
        for name, each in zip((b"rXYZ", b"gXYZ", b"bXYZ"), colorants, strict=True)
    }
    tags |= dict.fromkeys((b"rTRC", b"gTRC", b"bTRC"), curve)
    table, content = struct.pack(">I", len(tags)), b""
    start = 128 + 4 + 12 * len(tags)
    for name, body in tags.items():
        padded = body + bytes(-len(body) % 4)
        table += struct.pack(">4sII", name, start + len(content), len(body))
        content += padded
    header = struct.pack(
        ">I4sI4s4s4s12x4s", start + len(content), bytes(4), 0x04200000, b"mntr", space, b"XYZ ", b"acsp"
    )
    header += bytes(28) + _fixed(0.9642, 1.0, 0.8249)
    return header.ljust(128, b"\0") + table + content


def _colours() -> Image.Image:
    levels = np.arange(0, 256, 15, dtype=np.uint8)
    return Image.fromarray(np.stack(np.meshgrid(levels, levels, levels), axis=-1).reshape(-1, 18, 3))


def _by_littlecms(picture: Image.Image, encoded: bytes) -> np.ndarray:
    source = ImageCms.ImageCmsProfile(io.BytesIO(encoded))
    converted = ImageCms.profileToProfile(
        picture, source, ImageCms.createProfile("sRGB"), ImageCms.Intent.RELATIVE_COLORIMETRIC
    )
    return np.asarray(converted).astype(int)


@pytest.mark.parametrize("curve", _CURVES)
@pytest.mark.parametrize("colorants", [_P3, _ADOBE], ids=["Display P3", "Adobe RGB"])
def test_a_profile_is_applied_as_littlecms_applies_it(
    colorants: tuple[tuple[float, float, float], ...], curve: str
) -> None:
    encoded = profile(colorants, _CURVES[curve])
    conversion = colour.from_profile(encoded)
    assert conversion is not None
    found = conversion.apply(np.asarray(_colours())).astype(int)
    difference = np.abs(found - _by_littlecms(_colours(), encoded))
    # LittleCMS computes with 16 bits, which are coarse where sRGB is steep.
    assert difference.max() <= 3
    assert difference.mean() < 0.2


def test_a_profile_of_srgb_changes_nothing_however_it_is_written() -> None:
    assert colour.from_profile(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()) is None
    assert colour.from_profile(profile(_SRGB, _SRGB_CURVE)) is None
    points = np.interp(np.arange(1024) / 1023, np.arange(256) / 255, colour.from_primaries(12).curves[0])
    assert colour.from_profile(profile(_SRGB, _curv(*np.rint(points * 65_535).astype(int)))) is None


def _with(change: Callable[[bytearray], None]) -> bytes:
    changed = bytearray(profile(_P3, _SRGB_CURVE))
    change(changed)
    return bytes(changed)


@pytest.mark.parametrize(
    "encoded",
    [
        b"",
        b"no profile at all",
        profile(_P3, _SRGB_CURVE)[:200],
        profile(_P3, _SRGB_CURVE) + bytes(70_000),
        profile(_P3, _SRGB_CURVE, space=b"CMYK"),
        profile(_P3, b"what" + bytes(40)),
        profile(_P3, _para(9, 1.0)),
        profile(_P3, _para(1, 2.0, 0.0, 0.1)),
        profile(_P3, _curv(*range(10))[:-8]),
        profile(((1.0, 1.0, 1.0),) * 3, _SRGB_CURVE),
        _with(lambda each: each.__setitem__(slice(128, 132), b"\xff\xff\xff\xff"))[:160],
    ],
    ids=str,
)
def test_a_profile_that_is_damaged_huge_or_of_another_kind_is_ignored(encoded: bytes) -> None:
    assert colour.from_profile(encoded) is None


def test_primaries_of_display_p3_are_those_of_its_profile() -> None:
    by_code, by_profile = colour.from_primaries(12), colour.from_profile(profile(_P3, _SRGB_CURVE))
    assert by_code is not None
    assert by_profile is not None
    pixels = np.asarray(_colours())
    assert np.abs(by_code.apply(pixels).astype(int) - by_profile.apply(pixels)).max() <= 1
    assert colour.from_primaries(1) is colour.from_primaries(0) is colour.from_primaries(4711) is None


def test_a_conversion_passes_through_json_numbers_and_other_numbers_are_refused() -> None:
    conversion = colour.from_primaries(12)
    assert conversion is not None
    numbers = conversion.as_numbers()
    pixels = np.asarray(_colours())
    assert (Conversion.of(numbers).apply(pixels) == conversion.apply(pixels)).all()
    for wrong in (
        numbers[:3],
        [*numbers[:3], numbers[3][:8]],
        [*numbers[:3], [float("nan")] * 9],
        [*numbers[:3], [1e9] * 9],
    ):
        with pytest.raises(ValueError, match="conversion"):
            Conversion.of(wrong)


def _file(picture: Image.Image, image_format: str, **options: object) -> bytes:
    file = io.BytesIO()
    picture.save(file, image_format, **options)
    return file.getvalue()


@pytest.mark.parametrize("image_format", [each for each in PILLOW_NAMES.values() if each not in {"GIF", "BMP"}])
def test_a_picture_in_display_p3_is_converted_whatever_its_format(image_format: str) -> None:
    picture = _colours().resize((96, 90), Image.Resampling.NEAREST)
    encoded = profile(_P3, _SRGB_CURVE)
    plain = decode_pixels(_file(picture, image_format), _LIMITS)
    found = decode_pixels(_file(picture, image_format, icc_profile=encoded), _LIMITS).astype(int)
    expected = _by_littlecms(Image.fromarray(plain), encoded)
    assert np.abs(expected - plain).max() > 40
    assert np.abs(found - expected).max() <= 3


@pytest.mark.parametrize(("image_format", "mode"), [("JPEG", "L"), ("JPEG", "CMYK"), ("PNG", "L"), ("TIFF", "CMYK")])
def test_a_profile_of_rgb_is_not_applied_to_grey_and_to_cmyk(image_format: str, mode: str) -> None:
    picture = _colours().convert(mode)
    with_profile = _file(picture, image_format, icc_profile=profile(_ADOBE, _CURVES["gamma"]))
    assert (decode_pixels(with_profile, _LIMITS) == decode_pixels(_file(picture, image_format), _LIMITS)).all()


def test_a_profile_in_several_segments_of_a_jpeg_is_put_together_in_their_order() -> None:
    encoded, jpeg = profile(_P3, _SRGB_CURVE), _file(_colours(), "JPEG")
    parts = [b"ICC_PROFILE\0" + bytes([number, 2]) + part for number, part in ((2, encoded[300:]), (1, encoded[:300]))]
    segments = b"".join(b"\xff\xe2" + struct.pack(">H", 2 + len(part)) + part for part in parts)
    whole = _file(_colours(), "JPEG", icc_profile=encoded)
    assert (decode_pixels(jpeg[:2] + segments + jpeg[2:], _LIMITS) == decode_pixels(whole, _LIMITS)).all()


def test_a_decoder_process_hands_the_conversion_over_with_the_pixels() -> None:
    encoded = _file(_colours(), "TIFF", icc_profile=profile(_P3, _SRGB_CURVE))
    decoder = DecoderProcess(_LIMITS)
    try:
        found = decoder.decode(encoded, predict_cost(encoded, _LIMITS), Strips.assembled, enough=None)
    finally:
        decoder.close()
    assert (found == decode_pixels(encoded, _LIMITS)).all()
