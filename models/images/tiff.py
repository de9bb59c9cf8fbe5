"""Read the first directory of a TIFF (TIFF 6.0, section 2) or of Exif data, and predict the cost of a decode."""

from __future__ import annotations

import struct
from collections.abc import Container, Iterator, Mapping

from models.images.colour import DIRECTORY_BYTES, has_tables
from models.images.costs import Picture
from models.interface.errors import UndecodableImageError

# Nanoseconds of libtiff for each byte that a strip or tile unpacks to, by the value of the tag Compression; others
# count as the slowest. For CCITT a byte is eight pixels.
_BYTE_NS: Mapping[int, float] = {
    1: 2.0,  # none
    2: 80.0,  # CCITT
    3: 80.0,
    4: 80.0,
    5: 12.0,  # LZW
    7: 25.0,  # JPEG
    8: 10.0,  # Deflate
    32773: 4.0,  # PackBits
    32946: 10.0,
    50000: 6.0,  # Zstandard
}
_OTHER_BYTE_NS = 200.0
# Those above, JPEG as TIFF 6.0 had it, and LZMA.
_COMPRESSIONS = frozenset({*_BYTE_NS, 6, 34925})
_PIECE_NS = 5_000.0
# LittleCMS converts LAB to RGB.
_LAB_PIXEL_NS = 25.0
_LAB = 8
# Tags (TIFF 6.0, section 8).
_WIDTH, _LENGTH, _BITS, _COMPRESSION, _SAMPLES, _ROWS, _PLANES = 256, 257, 258, 259, 277, 278, 284
_PHOTOMETRIC, _ORIENTATION, _PREDICTOR, _TILE_WIDTH, _TILE_LENGTH, _SAMPLE_FORMAT = 262, 274, 317, 322, 323, 339
_PROFILE = 34675
_TAGS = frozenset((*range(_WIDTH, _TILE_LENGTH + 1), _SAMPLE_FORMAT, _PROFILE))
_NOT_PACKED = 1
_SEPARATE_PLANES = 2
_MOST_PLANES = 4
# Photometric interpretations whose separate planes Pillow combines as if they were red, green and blue.
_NOT_IN_PLANES = frozenset({0, 1, 3, _LAB})
# Compressions whose predictor libtiff undoes: LZW, Deflate, LZMA and Zstandard. It ignores that of others.
_PREDICTED = frozenset({5, 8, 32946, 34925, 50000})
_SAMPLE_FORMATS = {2: "signed", 3: "floating-point", 5: "complex", 6: "complex"}
_MOST_BITS = 16
_BIG_TIFF = 43
# Pillow reads one by one, and no more in _MeteredFile (pillow_reading.py). Real directories have some dozens.
_MOST_ENTRIES = 4_000
# Letters of the struct module for the types of whole numbers: BYTE, SHORT, LONG, UNDEFINED, IFD, LONG8, IFD8.
_NUMBERS = {1: "B", 7: "B", 3: "H", 4: "I", 13: "I", 16: "Q", 18: "Q"}


def read_numbers(data: bytes, tags: Container[int]) -> dict[int, int]:
    """Return the first value of each of the `tags` in the first directory of a TIFF, or of EXIF data, that is a whole
    number. Of several entries for one tag the last counts. Pillow would read all entries, in Python. Raises
    struct.error if the directory is not inside `data`."""
    order = "<" if data.startswith(b"II") else ">"
    numbers: dict[int, int] = {}
    for tag, letter, content in _entries(data, tags):
        if len(content) >= struct.calcsize(letter):
            (numbers[tag],) = struct.unpack_from(order + letter, content)
    return numbers


def profile_of(data: bytes, most: int | None = None) -> bytes:
    """Return the ICC profile in the same directory, or its first `most` bytes; empty if there is none."""
    profile = memoryview(b"")
    for _, _, content in _entries(data, {_PROFILE}):
        profile = content
    return bytes(profile[:most])


def cost(encoded: bytes, _enough: int) -> Picture:
    """Of the first picture of a TIFF."""
    if _is_big(encoded) and encoded.startswith(b"MM"):
        raise UndecodableImageError("TIFF", "it is a big-endian BigTIFF")
    tags = read_numbers(encoded, _TAGS)
    width, length = tags.get(_WIDTH, 0), tags.get(_LENGTH, 0)
    if not width or not length:
        raise UndecodableImageError("TIFF", "its first directory has no width and length")
    _check_samples(tags)
    samples, bits = tags.get(_SAMPLES, 1), tags.get(_BITS, 1)
    tile = tags.get(_TILE_WIDTH, 0), tags.get(_TILE_LENGTH, 0)
    across, down = tile if all(tile) else (width, min(tags.get(_ROWS) or length, length))
    pieces = -(-width // across) * -(-length // down)
    piece_samples = samples
    if tags.get(_PLANES) == _SEPARATE_PLANES:
        pieces, piece_samples = pieces * samples, 1
    piece_bytes = -(-across * piece_samples * bits // 8) * down
    compression = tags.get(_COMPRESSION, _NOT_PACKED)
    byte_ns = _BYTE_NS.get(compression, _OTHER_BYTE_NS)
    pixels = width * length
    # A piece, and what it is unpacked from.
    piece_copies = 1 if compression == _NOT_PACKED else 2
    copies = 1 if tags.get(_ORIENTATION, 1) == 1 else 2
    return Picture(
        width,
        length,
        pieces * (_PIECE_NS + piece_bytes * byte_ns) + pixels * _LAB_PIXEL_NS * (tags.get(_PHOTOMETRIC) == _LAB),
        # One piece, and Pillow's image, twice if it has to be rotated.
        piece_copies * piece_bytes + pixels * copies * (4 if samples > 1 else -(-bits // 8)),
        profile=_PROFILE in tags,
        tables=has_tables(profile_of(encoded, DIRECTORY_BYTES)),
    )


def _check_samples(tags: Mapping[int, int]) -> None:
    """Raises UndecodableImageError for pixels that Pillow refuses, or would read wrongly."""
    if (kind := _SAMPLE_FORMATS.get(tags.get(_SAMPLE_FORMAT, 1))) is not None:
        raise UndecodableImageError("TIFF", f"its pixels are {kind} numbers of unknown range")
    if tags.get(_BITS, 1) > _MOST_BITS:
        raise UndecodableImageError("TIFF", f"its pixels have {tags[_BITS]} bits, and at most {_MOST_BITS} are read")
    compression = tags.get(_COMPRESSION, _NOT_PACKED)
    if compression not in _COMPRESSIONS:
        raise UndecodableImageError("TIFF", f"its compression is not one that is read: {compression}")
    if tags.get(_PREDICTOR, 1) != 1 and compression not in _PREDICTED:
        raise UndecodableImageError("TIFF", "its pixels are differences, and its compression is not one that has these")
    planes = tags.get(_SAMPLES, 1) if tags.get(_PLANES) == _SEPARATE_PLANES else 1
    if planes > _MOST_PLANES or (planes > 1 and tags.get(_PHOTOMETRIC, 0) in _NOT_IN_PLANES):
        raise UndecodableImageError("TIFF", f"its {planes} planes are stored one after another, and not of RGB or CMYK")


def _entries(data: bytes, tags: Container[int]) -> Iterator[tuple[int, str, memoryview]]:
    """Yield tag, letter of the struct module, and content of each entry for one of the `tags`."""
    order = "<" if data.startswith(b"II") else ">"
    big = _is_big(data)
    offset, number, value = ("Q", "Q", "8s") if big else ("I", "H", "4s")
    (start,) = struct.unpack_from(order + offset, data, 8 if big else 4)
    if start > len(data):
        # struct raises OverflowError for offsets over 63 bits.
        raise struct.error("the directory starts after the end of the data")
    (entries,) = struct.unpack_from(order + number, data, start)
    start += struct.calcsize(order + number)
    entry = struct.Struct(order + "HH" + offset + value)
    # As other readers do, use the entries that exist.
    end = start + min(entries, (len(data) - start) // entry.size, _MOST_ENTRIES) * entry.size
    for tag, kind, values, inline in entry.iter_unpack(data[start:end]):
        letter = _NUMBERS.get(kind)
        if tag not in tags or letter is None or not values:
            continue
        size = values * struct.calcsize(letter)
        at, source = (0, inline) if size <= len(inline) else (*struct.unpack(order + offset, inline), data)
        yield tag, letter, memoryview(source)[at : at + size]


def _is_big(data: bytes) -> bool:
    """Return whether a TIFF has offsets of 64 bits."""
    return data[2:4] == struct.pack("<H" if data.startswith(b"II") else ">H", _BIG_TIFF)
