"""Convert the colours of a picture to sRGB, which networks are trained on.

Phones record in Display P3: the same numbers stand for stronger colours. An ICC profile of a camera or a screen gives
three curves and a matrix (ICC.1:2022, F.3), and so does a code for the primaries (ITU-T H.273). Their arithmetic is a
few lines of NumPy and not LittleCMS, so that threads of the service can do it with untrusted profiles. Profiles of
printers and scanners are made of tables; LittleCMS applies those, for requests in decoder processes. Profiles of grey
are ignored.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from functools import lru_cache
from io import BytesIO
from typing import Literal, NamedTuple, Self

import numpy as np
from numpy.typing import NDArray
from PIL import ImageCms

Pixels = NDArray[np.uint8]

# Profiles of curves have 0.5 to 30 kB, those of tables up to 3 MB. Larger ones are ignored.
_MOST_PROFILE_BYTES = 2**16
_MOST_TABLES_BYTES = 2**22
_KEPT_CONVERSIONS = 32
# Levels of 255 that a profile must change somewhere: profiles of sRGB itself differ by their roundings.
_LEAST_CHANGE = 3
# Pixels that are converted at once, 12 bytes each.
_STRIP_PIXELS = 2**17
# Steps of linear light in the table that leads to sRGB. One step is at most 0.4 levels of 255.
_STEPS = 2**13

_HEADER = struct.Struct(">I8x4s4s4s12x4s")
_TAGS_AT = 128
_MOST_TAGS = 100
_TAG = struct.Struct(">4sII")
# Bytes of a profile that `has_tables` needs.
DIRECTORY_BYTES = _TAGS_AT + 4 + _MOST_TAGS * _TAG.size
# The tag of the table from colours of the device to those of people, for the perceptual intent.
_TABLES = b"A2B0"
_XYZ = struct.Struct(">4s4xiii")
_CURVE = struct.Struct(">4s4xI")
_FIXED = 65_536
_COLORANTS = (b"rXYZ", b"gXYZ", b"bXYZ")
_CURVES = (b"rTRC", b"gTRC", b"bTRC")
# More than any matrix between colour spaces has.
_LARGEST_COEFFICIENT = 100
# Numbers of the parametric curves (ICC.1:2022, table 67).
_PARAMETERS = (1, 3, 4, 5, 7)
# The white of the profile connection space, and by how much the colorants of a sound profile may miss it.
_D50 = np.array([0.9642, 1.0, 0.8249])
_WHITE_TOLERANCE = 0.02

# Chromaticities of red, green and blue: sRGB, and by their codes in H.273 (table 2) BT.2020 and Display P3. All have
# the white D65, here with the xy of table 2.
_SRGB = ((0.64, 0.33), (0.30, 0.60), (0.15, 0.06))
_PRIMARIES = {9: ((0.708, 0.292), (0.170, 0.797), (0.131, 0.046)), 12: ((0.680, 0.320), (0.265, 0.690), (0.150, 0.060))}
_D65_XY = (0.3127, 0.3290)
# sRGB's colorants relative to D50 (IEC 61966-2-1, as in the profile of the ICC).
_SRGB_D50 = np.array([[0.43607, 0.38515, 0.14307], [0.22249, 0.71687, 0.06061], [0.01392, 0.09708, 0.71410]])


class Conversion(NamedTuple):
    """How a picture's colours become sRGB. `curves`: (3, 256) float32, the linear light of each value of red, green
    and blue. `matrix`: (3, 3) float32, from these to those of sRGB."""

    curves: NDArray[np.float32]
    matrix: NDArray[np.float32]

    @classmethod
    def of(cls, numbers: Sequence[Sequence[float]]) -> Self:
        """Return the conversion whose `as_numbers` they are. Raises ValueError if they are of another shape."""
        if [len(each) for each in numbers] != [256, 256, 256, 9]:
            raise ValueError("the numbers of a conversion are missing")
        *curves, matrix = (np.array(each, np.float32) for each in numbers)
        if not all((np.abs(each) <= _LARGEST_COEFFICIENT).all() for each in (*curves, matrix)):
            raise ValueError("the numbers of a conversion are too large")
        return cls(np.stack(curves), matrix.reshape(3, 3))

    def as_numbers(self) -> list[list[float]]:
        """Return three curves and a matrix, row by row, for JSON."""
        return [each.tolist() for each in (*self.curves, self.matrix.ravel())]

    def apply(self, pixels: Pixels) -> Pixels:
        """Return (H, W, 3) uint8 RGB pixels in sRGB."""
        converted = np.empty(pixels.shape, np.uint8)
        rows = max(1, _STRIP_PIXELS // pixels.shape[1])
        for top in range(0, len(pixels), rows):
            strip = pixels[top : top + rows]
            light = np.stack([curve[strip[:, :, channel]] for channel, curve in enumerate(self.curves)], axis=2)
            steps = np.clip(light @ self.matrix.T, 0, 1) * np.float32(_STEPS) + np.float32(0.5)
            converted[top : top + rows] = _TO_SRGB[steps.astype(np.int16)]
        return converted


def from_profile(profile: bytes) -> Conversion | None:
    """Return the conversion of an ICC profile; None if it changes nothing, is damaged or is not of the kind above."""
    return _from_profile(profile) if 0 < len(profile) <= _MOST_PROFILE_BYTES else None


def from_primaries(code: int) -> Conversion | None:
    """Return the conversion of a picture with these primaries (H.273, table 2) and sRGB's curve; None if there is none
    for the code."""
    if code not in _PRIMARIES:
        return None
    matrix = np.linalg.inv(_to_xyz(_SRGB)) @ _to_xyz(_PRIMARIES[code])
    return _worthwhile(np.stack([_srgb_to_linear(np.arange(256) / 255)] * 3), matrix)


@lru_cache(_KEPT_CONVERSIONS)
def _from_profile(profile: bytes) -> Conversion | None:
    try:
        size, _kind, space, connection, signature = _HEADER.unpack_from(profile)
        if (space, connection, signature) != (b"RGB ", b"XYZ ", b"acsp") or size > len(profile):
            return None
        tags = _tags(profile)
        colorants = np.array([_xyz(profile[tags[name]]) for name in _COLORANTS]).T / _FIXED
        curves = np.stack([_curve(profile[tags[name]]) for name in _CURVES])
    except (struct.error, KeyError, ValueError, ArithmeticError):
        return None
    if np.abs(colorants.sum(axis=1) - _D50).max() > _WHITE_TOLERANCE or not np.isfinite(curves).all():
        return None
    return _worthwhile(np.clip(curves, 0, 1), np.linalg.inv(_SRGB_D50) @ colorants)


def _worthwhile(curves: NDArray[np.float64], matrix: NDArray[np.float64]) -> Conversion | None:
    """Return the conversion unless it leaves pictures as they are."""
    conversion = Conversion(curves.astype(np.float32), matrix.astype(np.float32))
    levels = np.arange(0, 256, 51, dtype=np.uint8)
    colours = np.stack(np.meshgrid(levels, levels, levels), axis=-1).reshape(1, -1, 3)
    change = np.abs(conversion.apply(colours).astype(int) - colours).max()
    return conversion if change >= _LEAST_CHANGE else None


def has_tables(beginning: bytes) -> bool:
    """Return whether the profile of RGB or CMYK that begins so, with up to DIRECTORY_BYTES, is made of tables alone."""
    if len(beginning) < _TAGS_AT + 4:
        return False
    size, _kind, space, _connection, signature = _HEADER.unpack_from(beginning)
    if signature != b"acsp" or space not in {b"RGB ", b"CMYK"} or size > _MOST_TABLES_BYTES:
        return False
    tags = _tags(beginning)
    return _TABLES in tags and _COLORANTS[0] not in tags


def from_tables(profile: bytes, mode: Literal["RGB", "CMYK"]) -> ImageCms.ImageCmsTransform | None:
    """Return LittleCMS's conversion of images of that mode by a profile made of tables: by the table for the
    perceptual intent, without compensation of the black point. None if the profile is damaged, of another
    mode or not made of tables. For requests, call it in decoder processes only."""
    if len(profile) > _MOST_TABLES_BYTES or not has_tables(profile[:DIRECTORY_BYTES]):
        return None
    # LittleCMS gets this table alone. Its time is known: of other tags it would read some whose steps have no limit.
    table = profile[_tags(profile)[_TABLES]]
    start = _TAGS_AT + 4 + _TAG.size
    directory = struct.pack(">I", 1) + _TAG.pack(_TABLES, start, len(table))
    reduced = struct.pack(">I", start + len(table)) + profile[4:_TAGS_AT] + directory + table
    try:
        source = ImageCms.ImageCmsProfile(BytesIO(reduced))
        # The perceptual intent would compensate it.
        intent = ImageCms.Intent.RELATIVE_COLORIMETRIC
        return ImageCms.buildTransform(source, ImageCms.createProfile("sRGB"), mode, "RGB", intent)
    except (ImageCms.PyCMSError, OSError):
        return None


def _tags(profile: bytes) -> Mapping[bytes, slice]:
    """Return where the content of each tag is."""
    (number,) = struct.unpack_from(">I", profile, _TAGS_AT)
    entries = profile[_TAGS_AT + 4 :][: min(number, _MOST_TAGS) * _TAG.size]
    return {
        name: slice(at, at + size)
        for name, at, size in _TAG.iter_unpack(entries[: len(entries) // _TAG.size * _TAG.size])
    }


def _xyz(tag: bytes) -> tuple[int, int, int]:
    kind, x, y, z = _XYZ.unpack_from(tag)
    if kind != b"XYZ ":
        raise ValueError("the tag of a colorant is of another type")
    return x, y, z


def _curve(tag: bytes) -> NDArray[np.float64]:
    """Return the linear light of the values 0 to 255 (ICC.1:2022, 10.6 and 10.18)."""
    values = np.arange(256) / 255
    kind, number = _CURVE.unpack_from(tag)
    if kind == b"curv":
        points = np.array(struct.unpack_from(f">{number}H", tag, _CURVE.size), np.float64)
        if number == 0:
            return values
        if number == 1:
            light: NDArray[np.float64] = np.float_power(values, points[0] / 256)
        else:
            light = np.interp(values * (number - 1), np.arange(number), points / 65_535)
        return light
    if kind != b"para":
        raise ValueError("the tag of a curve is of another type")
    form = number >> 16
    if form >= len(_PARAMETERS):
        raise ValueError("the curve is of an unknown form")
    given = struct.unpack_from(f">{_PARAMETERS[form]}i", tag, _CURVE.size)
    gamma, a, b, c, d, e, f = [each / _FIXED for each in given] + [0.0] * (_PARAMETERS[-1] - len(given))
    if form == 0:
        a, d = 1.0, 0.0
    elif form < 3:  # noqa: PLR2004 - forms 1 and 2 end where their power does
        c, d, e, f = 0.0, -b / a, c, c
    power = np.float_power(np.maximum(a * values + b, 0), gamma) + e
    return np.asarray(np.where(values >= d, power, c * values + f), np.float64)


def _to_xyz(primaries: tuple[tuple[float, float], ...]) -> NDArray[np.float64]:
    """Return the matrix from linear light to XYZ, for the white D65."""
    columns: NDArray[np.float64] = np.array([[x / y, 1.0, (1 - x - y) / y] for x, y in primaries]).T
    x, y = _D65_XY
    return columns * np.linalg.solve(columns, np.array([x / y, 1.0, (1 - x - y) / y]))


def _srgb_to_linear(values: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.where(values <= 0.04045, values / 12.92, ((values + 0.055) / 1.055) ** 2.4)  # noqa: PLR2004 - IEC 61966-2-1


def _linear_to_srgb(light: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.where(light <= 0.0031308, light * 12.92, 1.055 * light ** (1 / 2.4) - 0.055)  # noqa: PLR2004 - as above


_TO_SRGB = np.rint(255 * _linear_to_srgb(np.arange(_STEPS + 1) / _STEPS)).astype(np.uint8)
