"""Read the boxes of AVIF and HEIC files (ISO/IEC 14496-12 and 23008-12): the cost of a decode is known before it.

Both hold items: pictures, tiles of a grid, transparency, thumbnails. Item properties give sizes, bits and colours.
Only the primary picture is decoded, with its tiles and its transparency.
"""

from __future__ import annotations

import struct
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import NamedTuple

from models.images.colour import DIRECTORY_BYTES, has_tables
from models.images.costs import Picture
from models.interface.errors import UndecodableImageError

# Boxes, items, properties and references, in all. A picture of 48 megapixels by a phone has about 1,200.
_MOST_PIECES = 20_000
_BOX = struct.Struct(">I4s")
_LARGE_SIZE = struct.Struct(">Q")
# Version and flags of a full box.
_FULL_BYTES = 4
# Types of references: a grid's tiles; and auxiliary pictures, from these to their picture.
_TILES, _AUXILIARY = b"dimg", b"auxl"
_ALPHA = (b"urn:mpeg:mpegB:cicp:systems:auxiliary:alpha", b"urn:mpeg:hevc:2015:auxid:1")
# Transfer functions of H.273, table 3, whose numbers are no brightness relative to white: PQ and HLG.
_HIGH_DYNAMIC_RANGE = frozenset({16, 18})
# Nanoseconds of dav1d and of libde265 for each pixel and for each byte of the file, with the conversion from YCbCr; and
# the bytes that they allocate for a pixel of one byte a sample, and in addition for one of two: the planes, RGB, its
# copy for Python, and Pillow's image. Measured on noise, the most expensive content.
_AVIF_PIXEL_NS = 28.0
_AVIF_BYTE_NS = 80.0
_AVIF_BYTES = 12
_HEIC_PIXEL_NS = 42.0
_HEIC_BYTE_NS = 55.0
_HEIC_BYTES = 11
_DEEP_BYTES = 4
_ALPHA_BYTES = 4
_BYTE_BITS = 8
_MOST_CHANNELS = 4


class Box(NamedTuple):
    """One box: its type, and where its content starts and ends."""

    kind: bytes
    start: int
    end: int


class Heif(NamedTuple):
    """The primary picture. `coded_pixels`: pixels of all pictures that are decoded for it. `bits`: the most of one
    sample. `profile`: the beginning of its ICC profile. `primaries`: code of its primaries; 0 is unknown."""

    width: int
    height: int
    coded_pixels: int
    bits: int
    alpha: bool
    profile: bytes
    primaries: int


def read_heif(encoded: bytes, image_format: str) -> Heif:
    """Read the boxes of an AVIF or a HEIC. `image_format` is named in errors. Raises UndecodableImageError, and
    struct.error where a box is cut off."""
    reader = _Reader(encoded, image_format)
    reader.walk(0, len(encoded))
    primary = reader.primary
    if primary is None:
        raise UndecodableImageError(image_format, "it has no primary picture")
    own = reader.properties_of(primary)
    if b"ispe" not in own:
        raise UndecodableImageError(image_format, "its header gives no size")
    width, height = struct.unpack_from(">II", encoded, own[b"ispe"].start + _FULL_BYTES)
    if image_format == "HEIC" and b"clap" in own:
        # libheif cuts off what encoders add to reach a whole number of blocks; Pillow's AVIF reader does not.
        across, across_unit, down, down_unit = struct.unpack_from(">4I", encoded, own[b"clap"].start)
        width, height = min(width, across // max(1, across_unit)), min(height, down // max(1, down_unit))
    alphas = [
        each for kind, each, to in reader.references if kind == _AUXILIARY and primary in to and reader.is_alpha(each)
    ]
    # Each once: the number of references times that of tiles may be hundreds of millions.
    pictures = dict.fromkeys([primary, *alphas])
    grids = {whole: parts for kind, whole, parts in reader.references if kind == _TILES and whole in pictures}
    # A grid has a size, but only its tiles have pixels.
    times = Counter(each for picture in pictures for each in grids.get(picture, (picture,)))
    coded = {each: reader.properties_of(each) for each in times}
    colours = [reader.colours_of(each) for each in (own, *coded.values())]
    if any(transfer in _HIGH_DYNAMIC_RANGE for _, _, transfer in colours):
        raise UndecodableImageError(image_format, "its brightness is of high dynamic range (PQ or HLG)")
    profile = next((profile for profile, _, _ in colours if profile), slice(0))
    return Heif(
        width,
        height,
        sum(times[each] * reader.pixels_of(properties) for each, properties in coded.items()),
        max(reader.bits_of(each) for each in (own, *coded.values())),
        bool(alphas),
        encoded[profile],
        next((primaries for _, primaries, _ in colours if primaries), 0),
    )


def avif_cost(encoded: bytes, _enough: int) -> Picture:
    """Of the primary picture of an AVIF."""
    return _cost(encoded, "AVIF", _AVIF_PIXEL_NS, _AVIF_BYTE_NS, _AVIF_BYTES)


def heic_cost(encoded: bytes, _enough: int) -> Picture:
    """Of the primary picture of a HEIC."""
    return _cost(encoded, "HEIC", _HEIC_PIXEL_NS, _HEIC_BYTE_NS, _HEIC_BYTES)


def _cost(encoded: bytes, image_format: str, pixel_ns: float, byte_ns: float, pixel_bytes: int) -> Picture:
    read = read_heif(encoded, image_format)
    pixels = read.width * read.height
    each_bytes = pixel_bytes + _DEEP_BYTES * (read.bits > _BYTE_BITS) + _ALPHA_BYTES * read.alpha
    return Picture(
        read.width,
        read.height,
        max(pixels, read.coded_pixels) * pixel_ns + len(encoded) * byte_ns,
        max(pixels, read.coded_pixels) * each_bytes,
        ordinary=False,
        profile=bool(read.profile) or read.primaries > 1,
        tables=has_tables(read.profile),
    )


class _Reader:
    """What the boxes say of all items: the number of the primary one, properties, their indices for each item, and
    references: kind, from one item, to others."""

    def __init__(self, encoded: bytes, image_format: str) -> None:
        self._encoded, self._format = encoded, image_format
        self._pieces_left = _MOST_PIECES
        self.primary: int | None = None
        self.references: list[tuple[bytes, int, tuple[int, ...]]] = []
        self._properties: list[Box] = []
        self._of_item: dict[int, list[int]] = {}
        # Those that were asked for, by item.
        self._found: dict[int, Mapping[bytes, Box]] = {}

    def walk(self, start: int, end: int, depth: int = 0) -> None:
        """Read the boxes from `start` to `end`, and those inside them."""
        for box in self._boxes(start, end):
            match box.kind:
                case b"meta" if depth == 0:
                    self.walk(box.start + _FULL_BYTES, box.end, depth + 1)
                case b"iprp" if depth == 1:
                    self.walk(box.start, box.end, depth + 1)
                case b"ipco":
                    self._properties = list(self._boxes(box.start, box.end))
                case b"pitm":
                    item_format = self._item_format(box)
                    (self.primary,) = struct.unpack_from(item_format, self._encoded, box.start + _FULL_BYTES)
                case b"ipma":
                    self._read_associations(box)
                case b"iref":
                    self._read_references(box)

    def properties_of(self, item: int) -> Mapping[bytes, Box]:
        """Return an item's properties by type. Colours may be given twice, so their second box is `colr2`."""
        if item in self._found:
            return self._found[item]
        found: dict[bytes, Box] = {}
        for index in self._of_item.get(item, ()):
            if 0 < index <= len(self._properties):
                box = self._properties[index - 1]
                found[b"colr2" if box.kind == b"colr" and b"colr" in found else box.kind] = box
        self._found[item] = found
        return found

    def is_alpha(self, item: int) -> bool:
        box = self.properties_of(item).get(b"auxC")
        return box is not None and self._encoded.startswith(_ALPHA, box.start + _FULL_BYTES)

    def pixels_of(self, properties: Mapping[bytes, Box]) -> int:
        box = properties.get(b"ispe")
        if box is None:
            return 0
        width, height = struct.unpack_from(">II", self._encoded, box.start + _FULL_BYTES)
        return int(width * height)

    def bits_of(self, properties: Mapping[bytes, Box]) -> int:
        box = properties.get(b"pixi")
        if box is None:
            return 8
        first = box.start + _FULL_BYTES + 1
        return max(self._encoded[first : min(box.end, first + _MOST_CHANNELS)], default=8)

    def colours_of(self, properties: Mapping[bytes, Box]) -> tuple[slice | None, int, int]:
        """Return where the profile begins, and the codes of primaries and transfer function, 0 where none is."""
        profile, primaries, transfer = None, 0, 0
        for name in (b"colr", b"colr2"):
            box = properties.get(name)
            if box is None:
                continue
            kind = self._encoded[box.start : box.start + 4]
            if kind in {b"prof", b"rICC"}:
                profile = profile or slice(box.start + 4, min(box.end, box.start + 4 + DIRECTORY_BYTES))
            if kind == b"nclx":
                primaries, transfer = struct.unpack_from(">HH", self._encoded, box.start + 4)
        return profile, primaries, transfer

    def _boxes(self, start: int, end: int) -> Iterator[Box]:
        while start + _BOX.size <= end:
            self._count()
            size, kind = _BOX.unpack_from(self._encoded, start)
            content = start + _BOX.size
            if size == 1:
                (size,) = _LARGE_SIZE.unpack_from(self._encoded, content)
                content += _LARGE_SIZE.size
            stop = min(start + size, end) if size else end
            if stop < content:
                raise UndecodableImageError(self._format, "a box in its header is too small")
            yield Box(kind, content, stop)
            start = stop

    def _read_associations(self, box: Box) -> None:
        flags, number = struct.unpack_from(">II", self._encoded, box.start)
        item_format, wide = self._item_format(box), flags & 1
        at = box.start + 8
        for _ in range(number):
            item, count = struct.unpack_from(item_format + "B", self._encoded, at)
            at += struct.calcsize(item_format + "B")
            indices = struct.unpack_from(f">{count}{'H' if wide else 'B'}", self._encoded, at)
            at += count * (2 if wide else 1)
            self._count(1 + count)
            # The highest bit says that a reader must know the property.
            self._of_item.setdefault(item, []).extend(each & (0x7FFF if wide else 0x7F) for each in indices)

    def _read_references(self, box: Box) -> None:
        item_format = self._item_format(box)
        size = struct.calcsize(item_format)
        for reference in self._boxes(box.start + _FULL_BYTES, box.end):
            item, number = struct.unpack_from(item_format + "H", self._encoded, reference.start)
            self._count(number)
            others = struct.unpack_from(f">{number}{item_format[1]}", self._encoded, reference.start + size + 2)
            self.references.append((reference.kind, item, others))

    def _item_format(self, box: Box) -> str:
        """Return the format of an item's number, which depends on the version of the box."""
        return ">I" if self._encoded[box.start] else ">H"

    def _count(self, pieces: int = 1) -> None:
        self._pieces_left -= pieces
        if self._pieces_left < 0:
            raise UndecodableImageError(self._format, "its header consists of too many pieces")
