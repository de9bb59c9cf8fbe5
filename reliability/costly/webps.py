"""WebP files of the lossless kind (VP8L), written bit by bit.

A prefix code of one symbol takes no bits, so a picture of any size whose codes have one symbol each is some 40 bytes,
and every transform of the format can be put over it.
"""

from __future__ import annotations

import struct

_SIGNATURE = b"\x2f"
_PREDICTOR, _CROSS_COLOUR, _SUBTRACT_GREEN = 0, 1, 2
# ClampAddSubtractHalf, the costliest.
_PREDICTOR_MODE = 13
# Transforms and groups of prefix codes are those of blocks of 4 x 4.
_BLOCK_BITS = 2
_FLAG_ANIMATION, _FLAG_ALPHA = 0x02, 0x10


class _Bits:
    """The least significant bit first."""

    def __init__(self) -> None:
        self._packed = bytearray()
        self._value = 0
        self._bits = 0

    def put(self, value: int, bits: int) -> None:
        self._value |= value << self._bits
        self._bits += bits
        while self._bits >= 8:  # noqa: PLR2004 - of a byte
            self._packed.append(self._value & 0xFF)
            self._value >>= 8
            self._bits -= 8

    def put_codes(self, green: int, red: int = 0, blue: int = 0, alpha: int = 0) -> None:
        """The five prefix codes of an image, each of one symbol."""
        for symbol in (green, red, blue, alpha, 0):
            self.put(0b01, 2)
            if symbol > 1:
                self.put(1, 1)
                self.put(symbol, 8)
            else:
                self.put(symbol << 1, 2)

    def packed(self) -> bytes:
        return bytes(self._packed) + bytes([self._value])


def transformed(width: int, height: int) -> bytes:
    """Return a lossless WebP with three transforms over a picture that costs no bits."""
    bits = _header(width, height)
    for kind, codes in ((_PREDICTOR, (_PREDICTOR_MODE,)), (_CROSS_COLOUR, (77, 33, 99))):
        bits.put(1, 1)
        bits.put(kind, 2)
        bits.put(_BLOCK_BITS - 2, 3)
        bits.put(0, 1)
        bits.put_codes(*codes)
    bits.put(1, 1)
    bits.put(_SUBTRACT_GREEN, 2)
    # No further transform, no colour cache, one group of codes.
    bits.put(0, 3)
    bits.put_codes(3, 1, 5, 7)
    return _file(_chunk(b"VP8L", _SIGNATURE + bits.packed()))


def of_groups(side: int, groups: int) -> bytes:
    """Return a lossless WebP with many groups of prefix codes, for each of which a decoder builds tables."""
    bits = _header(side, side)
    # No transform, no colour cache, but groups.
    bits.put(0b100, 3)
    bits.put(_BLOCK_BITS - 2, 3)
    bits.put(0, 1)
    for symbols in (280, 256):
        _put_byte_code(bits, symbols)
    for _ in range(3):
        bits.put(0b0001, 4)
    reversed_bytes = [int(f"{byte:08b}"[::-1], 2) for byte in range(256)]
    for block in range((side >> _BLOCK_BITS) ** 2):
        low, high = block % groups & 0xFF, block % groups >> 8
        bits.put(reversed_bytes[low] | reversed_bytes[high] << 8, 16)
    for group in range(groups):
        bits.put_codes(group & 1, group >> 1 & 1, group >> 2 & 1, 1)
    return _file(_chunk(b"VP8L", _SIGNATURE + bits.packed()))


def animated(width: int, height: int) -> bytes:
    """Return an animation whose canvas is large and whose frame is small."""
    side = 16
    frame = _three_bytes(0, 0, side - 1, side - 1, 50) + b"\0" + transformed(side, side)[12:]
    size = bytes([_FLAG_ANIMATION | _FLAG_ALPHA, 0, 0, 0]) + _three_bytes(width - 1, height - 1)
    return _file(_chunk(b"VP8X", size) + _chunk(b"ANIM", bytes(6)) + _chunk(b"ANMF", frame))


def _header(width: int, height: int) -> _Bits:
    bits = _Bits()
    bits.put(width - 1, 14)
    bits.put(height - 1, 14)
    bits.put(1, 4)
    return bits


def _put_byte_code(bits: _Bits, symbols: int) -> None:
    """A prefix code in which each byte has 8 bits, and what is above none."""
    lengths_in_order = (17, 18, 0, 1, 2, 3, 4, 5, 16, 6, 7, 8)
    bits.put(0, 1)
    bits.put(len(lengths_in_order) - 4, 4)
    for length in lengths_in_order:
        bits.put(int(length in {0, 8}), 3)
    bits.put(0, 1)
    for symbol in range(symbols):
        bits.put(int(symbol < 256), 1)  # noqa: PLR2004 - bytes


def _three_bytes(*numbers: int) -> bytes:
    return b"".join(number.to_bytes(3, "little") for number in numbers)


def _chunk(kind: bytes, body: bytes) -> bytes:
    return kind + struct.pack("<I", len(body)) + body + bytes(len(body) % 2)


def _file(chunks: bytes) -> bytes:
    return b"RIFF" + struct.pack("<I", 4 + len(chunks)) + b"WEBP" + chunks
