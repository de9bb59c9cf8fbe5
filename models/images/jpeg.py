"""Read the markers of a JPEG before any decode (ITU-T T.81, annex B), and predict the cost of the decode from them.

Pillow reads headers marker by marker in Python. Files with too many of them are refused; the limits are far above what
cameras and programs write.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import count
from typing import NamedTuple

from models.images.colour import DIRECTORY_BYTES, has_tables
from models.images.costs import Picture
from models.interface.errors import UndecodableImageError

# A JPEG of 20 MB that is metadata all over has 320 segments.
_MOST_SEGMENTS = 1000
_MOST_JUNK_BYTES = 65_536
# Pillow concatenates them one by one, and copies the result each time.
_MOST_EXIF_SEGMENTS = 64
_MOST_PHOTOSHOP_RESOURCES = 10_000
# Four quantization tables of 16 bits take 518, a frame of 255 components 773.
_MOST_TABLE_BYTES = 1024
_MOST_SEGMENTS_BETWEEN_SCANS = 10_000

_SOF = frozenset({*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC})
_PROGRESSIVE = frozenset({0xC2, 0xC6, 0xCA, 0xCE})
_LOSSLESS = frozenset({0xC3, 0xC7, 0xCB, 0xCF})
_HIERARCHICAL = frozenset({0xC5, 0xC6, 0xC7, 0xCD, 0xCE, 0xCF})
_FIRST_ARITHMETIC = 0xC9
_EOI, _SOS, _DQT, _APP1, _APP2, _APP13 = 0xD9, 0xDA, 0xDB, 0xE1, 0xE2, 0xED
END_OF_IMAGE = b"\xff\xd9"
# Markers that Pillow and libjpeg read without a length after them.
_ALONE = frozenset({*range(0xC0), 0xC8, *range(0xD0, 0xDA), *range(0xF0, 0xFE)})
_MOST_SCAN_COMPONENTS = 4
# What APP1 and APP2 segments begin with (Exif 2.32, 4.7.2; XMP specification part 3, 1.1.3; ICC.1:2022, B.4).
_EXIF = b"Exif\0\0"
_XMP = b"http://ns.adobe.com/xap/1.0/\0"
_ICC = b"ICC_PROFILE\0"
_BLOCK = 8
_BITS = 8
_COEFFICIENTS = 64
# Reductions that Pillow and simplejpeg have, largest first. simplejpeg also has 8/3, which costs as much as 2 and
# changes edges by 45 levels, and 8/5, 8/6 and 8/7, which cost more than full size: 37, 43 and 59 ms at 12 MP, not 35.
_REDUCTIONS = (8, 4, 2)
# Precision, height, width and number of components of a frame, and what it says of each (T.81, B.2.2).
_FRAME = struct.Struct(">BHHB")
_COMPONENT = struct.Struct("BBB")

# One byte 0xFF and the marker. A pattern that includes the padding before it would backtrack at each byte.
_MARKER = re.compile(rb"\xff[^\x00\xff]")
_MARKER_AMONG_PIXELS = re.compile(rb"\xff[\xc0-\xcf\xd8-\xfe]")
# Searched by one call, which holds the interpreter lock: up to 10 ns a byte. The event loop waits for it at each read.
_PIECE_BYTES = 16 * 1024
# Bytes 0xFF between the markers: they begin a marker, pad it (T.81, B.1.1.2) or stand for themselves before a zero. The
# search takes ten times as long for them. One byte in 256 is usual. A scan that adds a bit to each block may have no
# others: 0.1 MB of a picture of 50 megapixels.
_MOST_FULL_BYTES = 2**20

# Nanoseconds of libjpeg-turbo: for each byte of entropy-coded data; for each block of a scan; for each coefficient that
# a scan of a progressive image may change; for each that may be arithmetically coded, which needs no bytes of the file;
# to compute the pixels of a block, or to smooth one of an unfinished progressive image. And for each byte of Exif data,
# which Pillow reads in Python.
_BYTE_NS = 12.0
_BLOCK_NS = 30.0
_COEFFICIENT_NS = 1.75
_ARITHMETIC_COEFFICIENT_NS = 120.0
_BLOCK_OUT_NS = 200.0
_SMOOTHED_BLOCK_NS = 180.0
_EXIF_BYTE_NS = 100.0
_COEFFICIENT_BYTES = 2 * 64
_READ_COMPONENTS = frozenset({1, 3, 4})


class Component(NamedTuple):
    """One colour channel of a frame: its number and its sampling factors."""

    number: int
    across: int
    down: int


class Scan(NamedTuple):
    """One scan: positions of its components in the frame, and the coefficients of each block that it may change."""

    components: tuple[int, ...]
    coefficients: int


@dataclass(slots=True)
class Layout:
    """A JPEG's frame and scans. Width and height are 0 where no frame header came before the first scan. `profile`: its
    ICC profile. `complete`: whether the end of the image is marked."""

    width: int = 0
    height: int = 0
    precision: int = 8
    progressive: bool = False
    arithmetic: bool = False
    lossless: bool = False
    components: list[Component] = field(default_factory=list)
    scans: list[Scan] = field(default_factory=list)
    exif: bytes = b""
    xmp: bytes = b""
    profile: bytes = b""
    complete: bool = True
    hierarchical: bool = False
    # Numbers and contents, of which `profile` is made at the end.
    profile_parts: list[tuple[bytes, bytes]] = field(default_factory=list)
    _exif_segments: int = 0
    _photoshop_resources: int = 0

    def blocks(self, component: int) -> int:
        """8 x 8 blocks of one component (T.81, A.1.1)."""
        across, down = (max(getattr(each, side) for each in self.components) or 1 for side in ("across", "down"))
        one = self.components[component]
        width, height = -(-self.width * one.across // across), -(-self.height * one.down // down)
        return -(-width // _BLOCK) * -(-height // _BLOCK)

    @property
    def plain(self) -> bool:
        """Whether libjpeg-turbo's own interface reads it, at a reduced size too: eight bits, one or three components,
        not lossless, and no profile for LittleCMS. A lossless JPEG at a reduced size crashes it."""
        return self.precision == _BITS and len(self.components) in {1, 3} and not self.lossless and not self.has_tables

    @property
    def has_tables(self) -> bool:
        """Whether its colours are converted by a profile made of tables."""
        return len(self.components) > 1 and has_tables(self.profile[:DIRECTORY_BYTES])

    def reduction(self, enough: int) -> int:
        """Return by how much each side may be reduced so that the shorter one keeps `enough` pixels; 0 is all."""
        shorter = min(self.width, self.height)
        reducible = enough and not self.lossless
        return next((each for each in _REDUCTIONS if reducible and shorter // each >= enough), 1)

    @property
    def buffered(self) -> bool:
        """Whether libjpeg keeps all coefficients in memory until the last scan, two bytes each."""
        return self.progressive or len(self.scans) > 1 or len(self.scans[0].components) < len(self.components)

    def take(self, marker: int, segment: bytes) -> None:
        """Read one segment before the first scan, without its length. Raises UndecodableImageError."""
        if marker in _SOF or marker == _DQT:
            _refuse(len(segment) > _MOST_TABLE_BYTES, "a table in its header is too long")
        if marker in _SOF:
            self._take_frame(marker, segment)
        elif marker == _APP1 and segment.startswith(_EXIF):
            self._exif_segments += 1
            _refuse(self._exif_segments > _MOST_EXIF_SEGMENTS, "its Exif data is in too many segments")
            self.exif += segment.removeprefix(_EXIF)
        elif marker == _APP1 and segment.startswith(_XMP):
            self.xmp = segment.removeprefix(_XMP)
        elif marker == _APP2 and segment.startswith(_ICC):
            part = segment.removeprefix(_ICC)
            self.profile_parts.append((part[:1], part[2:]))
        elif marker == _APP13:
            self._photoshop_resources += segment.count(b"8BIM")
            _refuse(self._photoshop_resources > _MOST_PHOTOSHOP_RESOURCES, "it has too many resources of Photoshop")

    def _take_frame(self, marker: int, frame: bytes) -> None:
        _refuse(bool(self.components), "it has two frames")
        _refuse(len(frame) < _FRAME.size, "its frame header is too short")
        self.precision, self.height, self.width, components = _FRAME.unpack_from(frame)
        _refuse(len(frame) < _FRAME.size + 3 * components, "its frame header is too short")
        self.progressive, self.lossless = marker in _PROGRESSIVE, marker in _LOSSLESS
        self.arithmetic, self.hierarchical = marker >= _FIRST_ARITHMETIC, marker in _HIERARCHICAL
        self.components = [
            Component(number, sampling >> 4, sampling & 15)
            for number, sampling, _ in _COMPONENT.iter_unpack(frame[_FRAME.size : _FRAME.size + 3 * components])
        ]


def read_jpeg(encoded: bytes) -> Layout:
    """Read the markers of a JPEG. Takes microseconds for a single scan; a file with several scans is searched to its
    end, about 2 ms per MB.

    Raises UndecodableImageError if there is no scan, or more of anything than pictures have."""
    layout = Layout()
    at, junk_left = 0, _MOST_JUNK_BYTES
    for segments in count(1):
        found = _MARKER.search(encoded, at, at + junk_left + 2)
        if found is None:
            _refuse(at + junk_left < len(encoded), "there is too much between its markers")
            break
        _refuse(segments > _MOST_SEGMENTS, "it has too many segments")
        junk_left -= found.start() - at
        at = found.end()
        marker = encoded[at - 1]
        if marker in _ALONE:
            continue
        start, at = at, _end(encoded, at)
        if marker == _SOS:
            layout.profile = b"".join(part for _, part in sorted(layout.profile_parts))
            layout.complete = encoded.endswith(END_OF_IMAGE) or encoded.rfind(END_OF_IMAGE, at) >= 0
            layout.scans = _scans(encoded, start, layout)
            _refuse(not layout.scans, "its first scan is damaged")
            return layout
        layout.take(marker, encoded[start + 2 : at])
    raise UndecodableImageError("JPEG", "it ends before its pixels")


def _scans(encoded: bytes, first: int, layout: Layout) -> list[Scan]:
    """Return the scans of a file; the first one has its length at `first`."""
    # Of components with the same number, which T.81 forbids, libjpeg may take any: the most expensive is expected.
    by_size = sorted(enumerate(layout.components), key=lambda each: each[1].across * each[1].down)
    known = {component.number: at for at, component in by_size}
    scan = _scan_at(encoded, first, layout, known)
    if scan is None:
        return []
    if not layout.progressive and len(scan.components) == len(layout.components):
        # It has all components: such a JPEG can have no further scan.
        return [scan]
    further = (_scan_at(encoded, start, layout, known) for start in _walk(encoded, _end(encoded, first)))
    return [scan, *filter(None, further)]


def _scan_at(encoded: bytes, start: int, layout: Layout, known: Mapping[int, int]) -> Scan | None:
    """Return the scan whose header has its length at `start` (T.81, B.2.3); None if libjpeg would refuse it. `known`:
    positions of the components in the frame, by number."""
    number = encoded[start + 2] if start + 2 < len(encoded) else 0
    end = start + 6 + 2 * number
    if not 1 <= number <= _MOST_SCAN_COMPONENTS or end > len(encoded) or _end(encoded, start) != end:
        return None
    positions = [known.get(encoded[at]) for at in range(start + 3, end - 3, 2)]
    first, last = encoded[end - 3], encoded[end - 2]
    coefficients = max(1, min(last, 63) - first + 1) if layout.progressive else _COEFFICIENTS
    return Scan(tuple(each for each in positions if each is not None), coefficients)


def _walk(encoded: bytes, at: int) -> Iterator[int]:
    """Yield the position of the length of each further scan header, from `at` on."""
    segments = full_bytes = 0
    while at < len(encoded):
        # A marker may begin with the last byte of a piece.
        found = _MARKER_AMONG_PIXELS.search(encoded, at, at + _PIECE_BYTES + 1)
        end = at + _PIECE_BYTES if found is None else found.start()
        full_bytes += encoded.count(b"\xff", at, end)
        _refuse(full_bytes > _MOST_FULL_BYTES, "there are too many bytes 0xFF between its markers")
        if found is None:
            at = end
            continue
        marker, at = found[0][1], found.end()
        if marker == _EOI:
            return
        segments += 1
        _refuse(segments > _MOST_SEGMENTS_BETWEEN_SCANS, "it has too many segments")
        if marker == _SOS:
            yield at
        if marker not in _ALONE:
            at = _end(encoded, at)


def _end(encoded: bytes, start: int) -> int:
    """Return the end of the segment whose length is at `start`. The length includes its own two bytes."""
    return start + max(2, int.from_bytes(encoded[start : start + 2]))


def _refuse(too_much: bool, reason: str) -> None:  # noqa: FBT001 - a condition, as of assert
    if too_much:
        raise UndecodableImageError("JPEG", reason)


def cost(encoded: bytes, enough: int) -> Picture:
    """Of a JPEG, decoded so that its shorter side keeps `enough` pixels; 0 is full size."""
    layout = read_jpeg(encoded)
    _check_frame(layout)
    blocks = [layout.blocks(each) for each in range(len(layout.components))]
    if layout.arithmetic:
        coefficient_ns = _ARITHMETIC_COEFFICIENT_NS
    else:
        coefficient_ns = _COEFFICIENT_NS if layout.progressive else _BLOCK_NS / _COEFFICIENTS
    ns = len(encoded) * _BYTE_NS + len(layout.exif) * _EXIF_BYTE_NS
    ns += sum(
        blocks[component] * (_BLOCK_NS + scan.coefficients * coefficient_ns)
        for scan in layout.scans
        for component in scan.components
    )
    if not layout.complete and not layout.plain and not layout.lossless:
        # decode.py decodes it once more, to see whether only its last marker is missing.
        ns *= 2
    reduction = layout.reduction(enough)
    output = -(-layout.width // reduction) * -(-layout.height // reduction)
    ns += sum(blocks) * max(_BLOCK_OUT_NS / reduction, _SMOOTHED_BLOCK_NS * layout.buffered)
    coefficient_bytes = sum(blocks) * _COEFFICIENT_BYTES * layout.buffered
    return Picture(
        layout.width,
        layout.height,
        ns,
        # Four bytes a pixel in Pillow. libjpeg-turbo writes an array of three, which a decoder process copies to its
        # parent as a whole. Without `enough` there is no such process.
        coefficient_bytes + (6 if enough else 4) * output,
        ordinary=layout.plain and not layout.arithmetic,
        output_pixels=output,
        thread_decoder_bytes=coefficient_bytes + 3 * output,
        profile=bool(layout.profile),
        tables=layout.has_tables,
    )


def _check_frame(layout: Layout) -> None:
    """Raises UndecodableImageError for a frame that no decoder here reads."""
    components = len(layout.components)
    _refuse(not components, "it has no frame header")
    _refuse(layout.precision != _BITS, f"its samples have {layout.precision} bits, and only those of 8 are read")
    _refuse(layout.hierarchical, "it is hierarchical")
    _refuse(components not in _READ_COMPONENTS, f"it has {components} components, and 1, 3 or 4 are read")
    _refuse(not layout.width or not layout.height, "its header gives no height; it may follow the pixels (DNL)")
