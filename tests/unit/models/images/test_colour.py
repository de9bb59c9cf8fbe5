"""Colours are converted to sRGB as LittleCMS does it, where a profile changes them, and left alone elsewhere."""

from __future__ import annotations

import io
import struct
from collections.abc import Callable
from itertools import product

import numpy as np
import pytest
from PIL import Image, ImageCms

from models.images import colour
from models.images.colour import Conversion
from models.images.decode import Strips, decode_strips
from models.images.decoder_process import DecoderProcess
from models.images.formats import PILLOW_NAMES, predict_cost
from models.images.jpeg import read_jpeg
from models.interface.request import ImageLimits
from reliability.profiles import of_tables

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


def _decoded(encoded: bytes) -> np.ndarray:
    return decode_strips(encoded, _LIMITS).assembled()


def _file(picture: Image.Image, image_format: str, **options: object) -> bytes:
    file = io.BytesIO()
    picture.save(file, image_format, **options)
    return file.getvalue()


@pytest.mark.parametrize("image_format", [each for each in PILLOW_NAMES.values() if each not in {"GIF", "BMP"}])
def test_a_picture_in_display_p3_is_converted_whatever_its_format(image_format: str) -> None:
    picture = _colours().resize((96, 90), Image.Resampling.NEAREST)
    encoded = profile(_P3, _SRGB_CURVE)
    plain = _decoded(_file(picture, image_format))
    found = _decoded(_file(picture, image_format, icc_profile=encoded)).astype(int)
    expected = _by_littlecms(Image.fromarray(plain), encoded)
    assert np.abs(expected - plain).max() > 40
    assert np.abs(found - expected).max() <= 3


@pytest.mark.parametrize(("image_format", "mode"), [("JPEG", "L"), ("JPEG", "CMYK"), ("PNG", "L"), ("TIFF", "CMYK")])
def test_a_profile_of_rgb_is_not_applied_to_grey_and_to_cmyk(image_format: str, mode: str) -> None:
    picture = _colours().convert(mode)
    for encoded in (profile(_ADOBE, _CURVES["gamma"]), of_tables(_grid(3))):
        with_profile = _file(picture, image_format, icc_profile=encoded)
        assert (_decoded(with_profile) == _decoded(_file(picture, image_format))).all()


def test_a_profile_in_several_segments_of_a_jpeg_is_put_together_in_their_order() -> None:
    encoded, jpeg = profile(_P3, _SRGB_CURVE), _file(_colours(), "JPEG")
    parts = [b"ICC_PROFILE\0" + bytes([number, 2]) + part for number, part in ((2, encoded[300:]), (1, encoded[:300]))]
    segments = b"".join(b"\xff\xe2" + struct.pack(">H", 2 + len(part)) + part for part in parts)
    whole = _file(_colours(), "JPEG", icc_profile=encoded)
    assert (_decoded(jpeg[:2] + segments + jpeg[2:]) == _decoded(whole)).all()


def test_a_decoder_process_hands_the_conversion_over_with_the_pixels() -> None:
    encoded = _file(_colours(), "TIFF", icc_profile=profile(_P3, _SRGB_CURVE))
    decoder = DecoderProcess(_LIMITS)
    try:
        found = decoder.decode(encoded, predict_cost(encoded, _LIMITS), Strips.assembled, enough=None)
    finally:
        decoder.close()
    assert (found == _decoded(encoded)).all()


def _grid(inks: int) -> np.ndarray:
    """Return CIELAB of 9 steps of red, green and blue, or of each ink."""
    values = np.stack(np.meshgrid(*[np.arange(9) / 8] * inks, indexing="ij"), axis=-1)
    rgb = values if inks == 3 else (1 - values[..., :3]) * (1 - 0.8 * values[..., 3:])
    light = rgb @ [0.25, 0.6, 0.15]
    red, yellow = rgb[..., 0] - rgb[..., 1], rgb[..., 1] - rgb[..., 2]
    return np.stack([10 + 90 * light, 40 * red, 40 * yellow], axis=-1)


def _by_arithmetic(values: np.ndarray, grid: np.ndarray) -> np.ndarray:
    """Interpolate (N, inks) uint8 in CIELAB, and return (N, 3) levels of sRGB."""
    position = values / 255 * 8
    low = np.minimum(position.astype(int), 7)
    lab = np.zeros((len(values), 3))
    for corner in product((0, 1), repeat=values.shape[1]):
        shares = np.where(corner, position - low, 1 - position + low).prod(axis=1, keepdims=True)
        lab += shares * grid[tuple((low + corner).T)]
    y = (lab[:, 0] + 16) / 116
    roots = np.stack([y + lab[:, 1] / 500, y, y - lab[:, 2] / 200], axis=1)
    xyz = np.where(roots > 6 / 29, roots**3, 3 * (6 / 29) ** 2 * (roots - 4 / 29)) * [0.9642, 1.0, 0.8249]
    light = np.clip(xyz @ np.linalg.inv(np.array(_SRGB)), 0, 1)
    return 255 * np.where(light <= 0.0031308, light * 12.92, 1.055 * light ** (1 / 2.4) - 0.055)


_OF_RGB, _OF_CMYK = of_tables(_grid(3)), of_tables(_grid(4))


def _squares(mode: str) -> Image.Image:
    """Squares of 16 x 16, which a JPEG keeps, of random colours."""
    colours = np.random.default_rng(7).integers(0, 256, (6, 8, len(mode)), np.uint8)
    return Image.fromarray(colours.repeat(16, axis=0).repeat(16, axis=1), mode)


@pytest.mark.parametrize(
    ("image_format", "mode", "options"),
    [
        ("TIFF", "CMYK", {}),
        ("JPEG", "CMYK", {"quality": 100, "subsampling": 0}),
        ("TIFF", "RGB", {}),
        ("PNG", "RGB", {}),
        ("JPEG", "RGB", {"quality": 100, "subsampling": 0}),
        ("WEBP", "RGB", {"lossless": True}),
        ("AVIF", "RGB", {"quality": 100, "subsampling": "4:4:4"}),
        ("HEIF", "RGB", {"quality": -1, "chroma": 444}),
    ],
)
def test_a_profile_made_of_tables_is_applied_by_its_definition(
    image_format: str, mode: str, options: dict[str, object]
) -> None:
    picture, (grid, encoded) = _squares(mode), (_grid(len(mode)), of_tables(_grid(len(mode))))
    file = _file(picture, image_format, icc_profile=encoded, **options)
    expected = _by_arithmetic(np.asarray(picture).reshape(-1, len(mode)), grid).reshape(96, 128, 3)
    difference = np.abs(_decoded(file) - expected)
    assert difference.max() < 2
    assert difference.mean() < 0.5
    plain = _file(picture, image_format, **options)
    assert predict_cost(file, _LIMITS).seconds > predict_cost(plain, _LIMITS).seconds + 0.05
    assert not predict_cost(file, _LIMITS).ordinary


@pytest.mark.parametrize(
    ("mode", "encoded"),
    [
        ("CMYK", _OF_RGB),
        ("RGB", _OF_CMYK),
        ("RGB", _OF_RGB.replace(b"A2B0", b"rXYZ")),
        ("CMYK", _OF_CMYK[:1000]),
        ("CMYK", _OF_CMYK.replace(b"mft2", b"what")),
        ("CMYK", _OF_CMYK.replace(b"acsp", b"what")),
        ("CMYK", _OF_CMYK.replace(b"A2B0", b"A2B1")),
        ("CMYK", struct.pack(">I", 2**30) + _OF_CMYK[4:]),
        ("CMYK", _OF_CMYK + bytes(2**22)),
    ],
)
@pytest.mark.parametrize("image_format", ["JPEG", "TIFF"])
def test_tables_that_are_damaged_huge_or_of_another_kind_are_ignored(
    image_format: str, mode: str, encoded: bytes
) -> None:
    plain, with_profile = (_file(_squares(mode), image_format, **each) for each in ({}, {"icc_profile": encoded}))
    assert (_decoded(with_profile) == _decoded(plain)).all()


def test_littlecms_gets_no_other_tag_of_a_profile_than_the_table() -> None:
    """It would prefer those of floating-point steps, of which there may be any number."""
    tag = struct.pack(">4sII", b"D2B0", 144, 100)
    directory = struct.pack(">I4sII", 2, b"A2B0", 156, len(_OF_CMYK) - 144) + tag
    files = [
        _file(_squares("CMYK"), "TIFF", icc_profile=each)
        for each in (_OF_CMYK, _OF_CMYK[:128] + directory + _OF_CMYK[144:])
    ]
    assert (_decoded(files[0]) == _decoded(files[1])).all()


def test_a_jpeg_with_tables_that_lacks_only_its_end_is_read() -> None:
    file = _file(_squares("RGB"), "JPEG", icc_profile=_OF_RGB)
    assert (_decoded(file[:-2]) == _decoded(file)).all()


def test_tables_of_a_webp_that_no_prediction_saw_do_not_come_to_littlecms() -> None:
    plain, file = (_file(_squares("RGB"), "WEBP", **each) for each in ({}, {"icc_profile": _OF_RGB}))
    end = 38 + len(_OF_RGB) + len(_OF_RGB) % 2
    behind = file[:30] + file[end:] + file[30:end]
    assert predict_cost(behind, _LIMITS).ordinary
    assert (_decoded(behind) == _decoded(plain)).all()


def test_a_jpeg_s_profile_is_the_one_that_its_cost_was_predicted_from() -> None:
    """Pillow would read another one: it counts segments, and looks only before the frame header."""
    plain, file = (_file(_squares("CMYK"), "JPEG", **each) for each in ({}, {"icc_profile": _OF_CMYK}))
    start = file.index(b"\xff\xe2")
    (length,) = struct.unpack_from(">H", file, start + 2)
    segment = file[start : start + 2 + length]
    other = b"\xff\xe2\x00\x14ICC_PROFILE\0\x01\x09\0\0\0\0"
    scan = plain.index(b"\xff\xda")
    for misleading, with_tables in (
        (file[:start] + segment + other + file[start + len(segment) :], False),
        (plain[:scan] + segment + plain[scan:], True),
    ):
        applied = bool((_decoded(misleading) != _decoded(plain)).any())
        assert applied == read_jpeg(misleading).has_tables == with_tables


def test_a_profile_that_a_webp_s_flags_deny_is_ignored() -> None:
    plain, file = (_file(_squares("RGB"), "WEBP", **each) for each in ({}, {"icc_profile": _OF_RGB}))
    denied = file[:20] + bytes([file[20] & ~0x20]) + file[21:]
    assert (_decoded(denied) == _decoded(plain)).all()


def test_a_profile_of_another_type_does_not_spoil_a_grey_tiff() -> None:
    file = _file(_squares("RGB").convert("L"), "TIFF", icc_profile=b"none")
    assert (_decoded(file.replace(struct.pack("<HH", 34675, 7), struct.pack("<HH", 34675, 2))) == _decoded(file)).all()
