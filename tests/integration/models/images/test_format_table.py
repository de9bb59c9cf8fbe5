"""Every combination of docs/images.md is decoded to the samples that were written, and tifffile reads them alike.

The writers here know nothing of Pillow. They use all filters of PNG, several strips and tiles with an edge, and widths
that no byte divides.
"""

from __future__ import annotations

import io
import re
import struct
import zlib
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import product
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import tifffile
from numpy.typing import NDArray

from models.images.preprocessing import decode_image
from models.interface.request import ImageLimits

_PAGE = (Path(__file__).parents[4] / "docs" / "images.md").read_text()
_HEIGHT, _WIDTH = 21, 29
_STRIP_ROWS, _TILE = 8, (16, 32)
_ORDERS = {"little": "<", "big": ">"}
_ORDERS_OF = {"PNG": ["big"], "GIF": ["little"], "BMP": ["little"], "TIFF": ["little", "big"]}
_LIMITS = ImageLimits()
_GENERATOR = np.random.default_rng(20)
# Levels of 255 by which a decoder may round differently: of premultiplied alpha in 16 bits, and of colour spaces.
_ROUNDING = {"premultiplied": 3, "YCbCr": 2, "CIELAB": 5, "CMYK": 1}

Samples = NDArray[np.int64]
# Types and values of TIFF tags, by their numbers.
Tags = dict[int, tuple[int, Sequence[int]]]
# Samples, photometric interpretation, tags, and what a person sees.
Parts = tuple[Samples, int, Tags, NDArray[np.float64]]


class Kind(NamedTuple):
    """One combination of the table."""

    format: str
    colours: str
    bits: int
    layout: str
    order: str

    def __str__(self) -> str:
        return f"{self.format}, {self.colours}, {self.bits} bits, {self.layout}, {self.order}-endian"


def _kinds() -> Iterator[Kind]:
    [table] = re.findall(r"<!-- formats -->\n(.*?)<!-- /formats -->", _PAGE, re.DOTALL)
    for line in table.splitlines()[2:]:
        image_format, *cells = (cell.strip() for cell in line.strip("| ").split("|"))
        parts = (cell.split(", ") for cell in cells)
        for (colours, bits, layout), order in product(product(*parts), _ORDERS_OF[image_format]):
            yield Kind(image_format, colours, int(bits), layout, order)


def _decoded(encoded: bytes) -> NDArray[np.int64]:
    return decode_image(encoded, _LIMITS).permute(1, 2, 0).numpy().astype(np.int64)


# From samples to what a person sees.


def _random(bits: int, channels: int) -> Samples:
    return _GENERATOR.integers(0, 1 << bits, (_HEIGHT, _WIDTH, channels))


def _eight(samples: Samples, bits: int) -> Samples:
    """Scale samples to eight bits: upper ones are kept, missing ones filled."""
    return samples >> (bits - 8) if bits >= 8 else samples * 255 // ((1 << bits) - 1)


def _shown(samples: Samples) -> Samples:
    return np.broadcast_to(samples, (_HEIGHT, _WIDTH, 3))


def _blended(colours: Samples, alpha: Samples) -> NDArray[np.float64]:
    """Blend (H, W, 1 or 3) colours with white by (H, W, 1) alpha, all of eight bits."""
    return _shown(255 + (colours - 255) * alpha / 255)


# PNG


def _chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def _packed(rows: Samples, bits: int, order: str) -> list[bytes]:
    """Pack each row of (R, S) samples, most significant bit first."""
    if bits in {8, 16}:
        return [row.astype(f"{order}u{bits // 8}").tobytes() for row in rows]
    separate = (rows[:, :, None] >> np.arange(bits - 1, -1, -1)) & 1
    return [np.packbits(row.astype(np.uint8).ravel()).tobytes() for row in separate]


def _filtered(rows: Sequence[bytes], pixel_bytes: int) -> bytes:
    """Filter the rows by each of the five types in turn (PNG specification, section 9)."""
    filtered, above = b"", bytes(len(rows[0]) if rows else 0)
    for number, row in enumerate(rows):
        left = bytes(pixel_bytes) + row[:-pixel_bytes] if len(row) >= pixel_bytes else bytes(len(row))
        corner = bytes(pixel_bytes) + above[:-pixel_bytes] if len(row) >= pixel_bytes else bytes(len(row))
        kind = number % 5
        predicted = {
            0: lambda _a, _b, _c: 0,
            1: lambda a, _b, _c: a,
            2: lambda _a, b, _c: b,
            3: lambda a, b, _c: (a + b) // 2,
            4: lambda a, b, c: min((a, b, c), key=lambda each: abs(a + b - c - each)),
        }[kind]
        here = zip(row, left, above, corner, strict=True)
        filtered += bytes([kind, *((x - predicted(a, b, c)) % 256 for x, a, b, c in here)])
        above = row
    return filtered


_ADAM7 = [(0, 0, 8, 8), (0, 4, 8, 8), (4, 0, 8, 4), (0, 2, 4, 4), (2, 0, 4, 2), (0, 1, 2, 2), (1, 0, 2, 1)]


def _png(samples: Samples, bits: int, colours: int, extra: bytes, *, interlaced: bool) -> bytes:
    parts = [samples[top::down, left::across] for top, left, down, across in (_ADAM7 if interlaced else [(0, 0, 1, 1)])]
    pixel_bytes = max(1, samples.shape[2] * bits // 8)
    data = b"".join(
        _filtered(_packed(part.reshape(len(part), -1), bits, ">"), pixel_bytes) for part in parts if part.size
    )
    header = struct.pack(">IIBBBBB", _WIDTH, _HEIGHT, bits, colours, 0, 0, interlaced)
    return (
        b"\x89PNG\r\n\x1a\n"
        + _chunk(b"IHDR", header)
        + extra
        + _chunk(b"IDAT", zlib.compress(data))
        + _chunk(b"IEND", b"")
    )


def _png_case(kind: Kind) -> tuple[bytes, NDArray[np.float64]]:
    colours, bits = kind.colours, kind.bits
    interlaced = kind.layout == "interlaced"
    if colours.startswith("palette"):
        palette = _GENERATOR.integers(0, 256, (1 << bits, 3))
        alpha = _GENERATOR.integers(0, 256, (1 << bits, 1)) if "alpha" in colours else np.full((1 << bits, 1), 255)
        extra = _chunk(b"PLTE", palette.astype(np.uint8).tobytes())
        if "alpha" in colours:
            extra += _chunk(b"tRNS", alpha.astype(np.uint8).tobytes())
        indices = _random(bits, 1)
        return _png(indices, bits, 3, extra, interlaced=interlaced), _blended(
            palette[indices[..., 0]], alpha[indices[..., 0]]
        )
    channels = 3 if colours.startswith("RGB") else 1
    number = {1: 0, 3: 2}[channels] + 4 * ("with alpha" in colours)
    samples = _random(bits, channels + ("with alpha" in colours))
    shown = _eight(samples, bits)
    if "with alpha" in colours:
        return _png(samples, bits, number, b"", interlaced=interlaced), _blended(shown[..., :-1], shown[..., -1:])
    extra, opaque = b"", np.full((_HEIGHT, _WIDTH, 1), 255)
    if "transparent" in colours:
        # A neighbour that differs in its lowest bit alone, and bits above the depth, which do not count.
        samples[2, 3], samples[4, 5] = samples[0, 0], samples[0, 0] ^ 1
        key = samples[0, 0]
        extra = _chunk(b"tRNS", struct.pack(f">{channels}H", *(each | (0xFF00 if bits == 8 else 0) for each in key)))
        opaque = np.where((samples == key).all(axis=2, keepdims=True), 0, 255)
        shown = _eight(samples, bits)
    return _png(samples, bits, number, extra, interlaced=interlaced), _blended(shown, opaque)


# GIF


def _lzw(indices: bytes, bits: int) -> bytes:
    """Codes of GIF without compression: a clear code before the table would grow."""
    clear, size = 1 << bits, bits + 1
    codes = [
        each for start in range(0, len(indices), clear - 2) for each in (clear, *indices[start : start + clear - 2])
    ]
    whole = "".join(format(code, f"0{size}b") for code in reversed([*codes, clear + 1]))
    packed = int(whole, 2).to_bytes(-(-len(whole) // 8), "little")
    blocks = (packed[at : at + 255] for at in range(0, len(packed), 255))
    return bytes([bits]) + b"".join(bytes([len(block)]) + block for block in blocks) + b"\0"


def _gif_case(kind: Kind) -> tuple[bytes, NDArray[np.float64]]:
    palette = _GENERATOR.integers(0, 256, (1 << kind.bits, 3))
    indices = _random(kind.bits, 1)[..., 0]
    interlaced = kind.layout == "interlaced"
    order = [*range(0, _HEIGHT, 8), *range(4, _HEIGHT, 8), *range(2, _HEIGHT, 4), *range(1, _HEIGHT, 2)]
    rows = indices[order] if interlaced else indices
    control = b"!\xf9\x04\x01\0\0\1\0" if "transparent" in kind.colours else b""
    encoded = (
        b"GIF89a"
        + struct.pack("<HHBBB", _WIDTH, _HEIGHT, 0x80 | kind.bits - 1, 0, 0)
        + palette.astype(np.uint8).tobytes()
        + control
        + b","
        + struct.pack("<HHHHB", 0, 0, _WIDTH, _HEIGHT, 0x40 * interlaced)
        + _lzw(rows.astype(np.uint8).tobytes(), max(2, kind.bits))
        + b";"
    )
    alpha = np.where(indices == 1, 0, 255)[..., None] if control else np.full((_HEIGHT, _WIDTH, 1), 255)
    return encoded, _blended(palette[indices], alpha)


# BMP


def _runs(rows: Samples, bits: int) -> bytes:
    """Runs of one pixel and literal pixels in turn, an empty last row and a jump over pixels of index 0."""
    lines = []
    for number, row in enumerate(rows):
        if number % 3 == 0 or (bits == 4 and number % 3 == 1):
            line = b"".join(bytes([1, value if bits == 8 else value << 4]) for value in row)
        elif number % 3 == 1:
            line = bytes([0, len(row), *row]) + bytes(len(row) % 2)
        else:
            # Over ten pixels of index 0.
            line = b"\0\2\x0a\0" + b"".join(bytes([1, value if bits == 8 else value << 4]) for value in row[10:])
        lines.append(line if row.any() else b"")
    return b"\0\0".join(lines) + b"\0\1"


def _bmp_case(kind: Kind) -> tuple[bytes, NDArray[np.float64]]:
    bits, up = kind.bits, kind.layout != "downward rows"
    masks, compression, palette = b"", 0, b""
    if kind.colours == "palette":
        table = _GENERATOR.integers(0, 256, (1 << bits, 4))
        palette, samples = table.astype(np.uint8).tobytes(), _random(bits, 1)
        if kind.layout == "runs":
            samples[:-1][-1::-3, :10], samples[5] = 0, 0
            samples[[row for row in range(_HEIGHT) if (_HEIGHT - 1 - row) % 3 == 2], :10] = 0
            compression = {8: 1, 4: 2}[bits]
        shown = _shown(table[samples[..., 0]][..., 2::-1])
        values = samples
    elif bits == 16:
        # Five bits a colour, or, with masks, six of green.
        green = 5 if up else 6
        red_blue, middle = _random(5, 2), _random(green, 1)
        values = (red_blue[..., :1] << 5 + green) | (middle << 5) | red_blue[..., 1:]
        shown = np.dstack(
            [red_blue[..., 0] * 255 // 31, middle * 255 // ((1 << green) - 1), red_blue[..., 1] * 255 // 31]
        )
        if not up:
            masks, compression = struct.pack("<4I", 0xF800, 0x7E0, 0x1F, 0), 3
    else:
        channels = bits // 8
        samples = _random(8, channels)
        shown, values = samples[..., 2::-1], samples
        if "alpha" in kind.colours:
            shown, compression = _blended(shown, samples[..., 3:]), 3
            masks = struct.pack("<4I", 0xFF0000, 0xFF00, 0xFF, 0xFF000000)
    rows = values[::-1] if up else values
    if kind.layout == "runs":
        pixels = _runs(rows[..., 0], bits)
    else:
        lines = _packed(rows.reshape(_HEIGHT, -1), 8 if bits > 16 else bits, "<")
        pixels = b"".join(line + bytes(-len(line) % 4) for line in lines)
    header_bytes = 56 if masks else 40
    start = 14 + header_bytes + len(palette)
    info = struct.pack(
        "<IiiHHIIiiII", header_bytes, _WIDTH, _HEIGHT if up else -_HEIGHT, 1, bits, compression, len(pixels), 0, 0, 0, 0
    )
    return b"BM" + struct.pack("<IHHI", start + len(pixels), 0, 0, start) + info + masks + palette + pixels, shown


# TIFF


def tiff(
    samples: Samples,
    bits: int,
    photometric: int,
    *,
    layout: str = "strips",
    order: str = "<",
    compressed: bool = False,
    tags: Tags | None = None,
) -> bytes:
    """A TIFF of (H, W, S) samples. `tags` adds types and values to it."""
    planes = [samples[..., each : each + 1] for each in range(samples.shape[2])] if "planes" in layout else [samples]
    pieces = [_piece(part, bits, order) for plane in planes for part in _parts(plane, tiled="tile" in layout)]
    if compressed:
        pieces = [zlib.compress(piece) for piece in pieces]
    known: Tags = {
        256: (4, [_WIDTH]),
        257: (4, [_HEIGHT]),
        258: (3, [bits] * samples.shape[2]),
        259: (3, [8 if compressed else 1]),
        262: (3, [photometric]),
        277: (3, [samples.shape[2]]),
        284: (3, [2 if "planes" in layout else 1]),
        **({322: (4, [_TILE[1]]), 323: (4, [_TILE[0]])} if "tile" in layout else {278: (4, [_STRIP_ROWS])}),
        **(tags or {}),
    }
    offsets, counts = (324, 325) if "tile" in layout else (273, 279)
    known[counts] = 4, [len(piece) for piece in pieces]
    known[offsets] = 4, [0] * len(pieces)
    tables_at = 8 + 2 + 12 * len(known) + 4
    sizes = {tag: len(values) * {1: 1, 3: 2, 4: 4}[kind] for tag, (kind, values) in known.items()}
    first = tables_at + sum(size + size % 2 for size in sizes.values() if size > 4)
    known[offsets] = 4, [first + sum(map(len, pieces[:number])) for number in range(len(pieces))]
    entries, tables = b"", b""
    for tag, (kind, values) in sorted(known.items()):
        content = struct.pack(f"{order}{len(values)}{ {1: 'B', 3: 'H', 4: 'I'}[kind] }", *values)
        inline = content.ljust(4, b"\0")
        if len(content) > 4:
            inline = struct.pack(order + "I", tables_at + len(tables))
            tables += content + bytes(len(content) % 2)
        entries += struct.pack(order + "HHI", tag, kind, len(values)) + inline
    head = (b"II" if order == "<" else b"MM") + struct.pack(order + "HIH", 42, 8, len(known))
    return head + entries + bytes(4) + tables + b"".join(pieces)


def _parts(plane: Samples, *, tiled: bool) -> Iterator[Samples]:
    if not tiled:
        yield from (plane[top : top + _STRIP_ROWS] for top in range(0, _HEIGHT, _STRIP_ROWS))
        return
    down, across = _TILE
    for top in range(0, _HEIGHT, down):
        tile = np.zeros((down, across, plane.shape[2]), np.int64)
        inside = plane[top : top + down]
        tile[: len(inside), :_WIDTH] = inside
        yield tile


def _piece(part: Samples, bits: int, order: str) -> bytes:
    return b"".join(_packed(part.reshape(len(part), -1), bits, order))


def _grey(bits: int, photometric: int) -> Parts:
    samples = _random(bits, 1)
    return samples, photometric, {}, _shown(_eight(samples if photometric else (1 << bits) - 1 - samples, bits))


def _palette(bits: int) -> Parts:
    samples, palette = _random(bits, 1), _GENERATOR.integers(0, 65_536, (3, 1 << bits))
    return samples, 3, {320: (3, palette.ravel().tolist())}, palette.T[samples[..., 0]] >> 8


def _rgb(bits: int) -> Parts:
    samples = _random(bits, 3)
    return samples, 2, {}, _eight(samples, bits)


def _cmyk(bits: int) -> Parts:
    samples = _random(bits, 4)
    inks = _eight(samples, bits)
    return samples, 5, {}, (255 - inks[..., :3]) * (255 - inks[..., 3:]) / 255


def _with_another_sample(colours: str, bits: int) -> Parts:
    channels = 3 if colours.startswith("RGB") else 1
    samples, top = _random(bits, channels + 1), (1 << bits) - 1
    photometric, alpha = (2 if channels == 3 else 1), samples[..., -1:]
    if "another sample" in colours:
        return samples, photometric, {338: (3, [0])}, _eight(samples[..., :3], bits)
    if "premultiplied" in colours:
        samples[..., :-1] = samples[..., :-1] * alpha // top
        return samples, photometric, {338: (3, [1])}, _shown((samples[..., :-1] + top - alpha) * 255 / top)
    return samples, photometric, {338: (3, [2])}, _blended(_eight(samples[..., :-1], bits), _eight(alpha, bits))


def _ycc(_bits: int) -> Parts:
    """ITU-R BT.601 with all 256 levels, as in JFIF."""
    samples = _GENERATOR.integers(90, 166, (_HEIGHT, _WIDTH, 3))
    luma, blue, red = samples[..., 0], samples[..., 1] - 128, samples[..., 2] - 128
    shown = np.stack([luma + 1.402 * red, luma - 0.344136 * blue - 0.714136 * red, luma + 1.772 * blue], axis=2)
    return samples, 6, {530: (3, [1, 1])}, shown


def _lab(_bits: int) -> Parts:
    """CIE 1976 L*a*b* relative to D50, with Bradford's adaptation to D65 (the matrix of IEC 61966-2-1 for D50)."""
    lightness = _GENERATOR.integers(100, 200, (_HEIGHT, _WIDTH))
    chroma = _GENERATOR.integers(-15, 16, (_HEIGHT, _WIDTH, 2))
    y = (lightness * 100 / 255 + 16) / 116
    curve = np.stack([y + chroma[..., 0] / 500, y, y - chroma[..., 1] / 200], axis=2)
    xyz = np.where(curve > 6 / 29, curve**3, 3 * (6 / 29) ** 2 * (curve - 4 / 29)) * [0.9642, 1, 0.8249]
    to_linear = np.array([[3.1339, -1.6169, -0.4906], [-0.9788, 1.9161, 0.0335], [0.0719, -0.2290, 1.4052]])
    light = np.clip(xyz @ to_linear.T, 0, 1)
    shown = 255 * np.where(light <= 0.0031308, 12.92 * light, 1.055 * light ** (1 / 2.4) - 0.055)
    return np.dstack([lightness, chroma % 256]), 8, {}, shown


_PARTS: dict[str, Callable[[int], Parts]] = {
    "grey from black": partial(_grey, photometric=1),
    "grey from white": partial(_grey, photometric=0),
    "palette": _palette,
    "RGB": _rgb,
    "CMYK": _cmyk,
    "YCbCr": _ycc,
    "CIELAB": _lab,
}


def _tiff_case(kind: Kind) -> Iterator[tuple[bytes, NDArray[np.float64]]]:
    samples, photometric, tags, shown = _PARTS.get(kind.colours, partial(_with_another_sample, kind.colours))(kind.bits)
    for compressed in (False, True):
        encoded = tiff(
            samples,
            kind.bits,
            photometric,
            layout=kind.layout,
            order=_ORDERS[kind.order],
            compressed=compressed,
            tags=tags,
        )
        # Without its package of codecs, tifffile unpacks no other numbers of bits.
        if kind.bits in {1, 8, 16}:
            read = tifffile.imread(io.BytesIO(encoded))
            ours = samples.transpose(2, 0, 1) if "planes" in kind.layout else samples.squeeze()
            assert (read == ours).all()
        yield encoded, shown


_CASES: dict[str, Callable[[Kind], tuple[bytes, NDArray[np.float64]]]] = {
    "PNG": _png_case,
    "GIF": _gif_case,
    "BMP": _bmp_case,
}


@pytest.mark.parametrize("kind", list(_kinds()), ids=str)
def test_a_kind_of_the_table_is_decoded_to_the_samples_that_were_written(kind: Kind) -> None:
    tolerance = next((levels for name, levels in _ROUNDING.items() if name in kind.colours), 1)
    for encoded, shown in _tiff_case(kind) if kind.format == "TIFF" else [_CASES[kind.format](kind)]:
        found = _decoded(encoded)
        assert found.shape == (_HEIGHT, _WIDTH, 3)
        assert np.abs(found - shown).max() <= tolerance
