"""Predict the cost of decoding a BMP (Windows bitmap), decode its runs (BI_RLE8 and BI_RLE4), and mend its palette.

Pillow's own decoder of runs loses empty lines, and reads each run with two calls of `read`.
"""

from __future__ import annotations

import struct

from PIL import Image, ImageFile, ImagePalette

from models.images.costs import Picture

_END_OF_LINE, _END_OF_BITMAP, _DELTA = 0, 1, 2
_PIXEL_NS = 8.0
# Runs are unpacked in Python.
_RUN_PIXEL_NS = 10.0
_RUN_BYTE_NS = 420.0
_OS2_HEADER = 12
_RUNS = frozenset({1, 2})
_PALETTE_BITS = 8


def cost(encoded: bytes, _enough: int) -> Picture:
    """Of a BMP."""
    (header_bytes,) = struct.unpack_from("<I", encoded, 14)
    if header_bytes == _OS2_HEADER:
        width, height, _, bits = struct.unpack_from("<HHHH", encoded, 18)
        compression = 0
    else:
        width, height, _, bits, compression = struct.unpack_from("<iiHHI", encoded, 18)
    width, height = abs(width), abs(height)
    pixels = width * height
    in_runs = compression in _RUNS
    stored = 1 if bits <= _PALETTE_BITS else 4
    return Picture(
        width,
        height,
        pixels * _RUN_PIXEL_NS + len(encoded) * _RUN_BYTE_NS if in_runs else pixels * _PIXEL_NS,
        # Runs are unpacked into a bytearray of one byte a pixel, and copied, as is the file.
        pixels * (stored + 2 * in_runs) + len(encoded) * in_runs,
    )


def unify_palette(image: Image.Image, encoded: bytes) -> None:
    """Read the pixels of a BMP as palette indices where Pillow would not: it takes a palette of black and white for one
    bit a pixel, and one of grey levels for eight, whatever the file has."""
    (header_bytes,) = struct.unpack_from("<I", encoded, 14)
    bits = encoded[24 if header_bytes == _OS2_HEADER else 28]
    if (
        image.mode not in {"1", "L"}
        or bits == {"1": 1, "L": 8}[image.mode]
        or not isinstance(image, ImageFile.ImageFile)
    ):
        return
    [tile] = image.tile
    if tile.codec_name == "raw" and isinstance(tile.args, tuple):
        greys = (0, 255) if image.mode == "1" else range(256)
        image._mode = "P"  # noqa: SLF001 - as Pillow's readers do
        image.palette = ImagePalette.raw("RGB", bytes(grey for grey in greys for _ in range(3)))
        image.tile = [tile._replace(args=({1: "P;1", 4: "P;4", 8: "P"}[bits], *tile.args[1:]))]


class RunsDecoder(ImageFile.PyDecoder):
    """Pillow's interface of a decoder: `args` are the raw mode, whether a pixel has four bits, and the direction of the
    rows. `fd` is the file at the position of its pixels."""

    _pulls_fd = True

    def decode(self, buffer: Image.DecoderInput) -> tuple[int, int]:  # noqa: ARG002 - pixels come from `fd`
        assert self.fd is not None  # noqa: S101 - Pillow sets it
        _, four_bits, direction = self.args
        width, height = self.state.xsize, self.state.ysize
        indices = unpacked(self.fd.read(), width, height, four_bits=four_bits)
        # A palette of black and white is no palette in Pillow, and its pixels are 0 and 255.
        self.set_as_raw(indices, "1;8" if self.mode == "1" else self.mode, (0, direction))
        return -1, 0


def unpacked(runs: bytes, width: int, height: int, *, four_bits: bool) -> bytes:
    """Return the palette index of each pixel, (height, width), in the order of the file: the lowest row first. Pixels
    that no run covers have the index 0. Raises ValueError if the runs end before their last row."""
    pixels = bytearray(width * height)
    position, row_end, at = 0, width, 0
    try:
        while row_end <= len(pixels):
            count, value = runs[at], runs[at + 1]
            at += 2
            if count or value > _DELTA:
                if not count:
                    run, at = _literal(runs, at, value, four_bits)
                elif four_bits:
                    run = _repeated(value, count)
                else:
                    run = runs[at - 1 : at] * count
                end = min(position + len(run), row_end)
                pixels[position:end] = run[: end - position]
                position = end
            elif value == _END_OF_LINE:
                position, row_end = row_end, row_end + width
            elif value == _END_OF_BITMAP:
                break
            else:
                up = runs[at + 1] * width
                position, row_end = min(position + runs[at], row_end) + up, row_end + up
                at += 2
    except IndexError:
        # The last row may lack its end.
        if position < len(pixels):
            raise ValueError("it ends before its pixels") from None
    return bytes(pixels)


def _repeated(pair: int, count: int) -> bytes:
    return (bytes((pair >> 4, pair & 15)) * (count // 2 + 1))[:count]


def _literal(runs: bytes, at: int, count: int, four_bits: bool) -> tuple[bytes, int]:  # noqa: FBT001 - of `unpacked`
    """Return `count` pixels from `at` on, and where they end, padded to 16 bits. Raises IndexError."""
    size = (count + 1) // 2 if four_bits else count
    packed = runs[at : at + size]
    if len(packed) < size:
        raise IndexError
    if four_bits:
        packed = bytes(half for pair in packed for half in (pair >> 4, pair & 15))[:count]
    return packed, at + size + size % 2
