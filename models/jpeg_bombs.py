"""What a JPEG can cost that its width and height do not say: markers are counted before anybody decodes.

Pillow reads a header marker by marker in Python; libjpeg goes through all coefficients once for each scan.
models/image_bombs.py is the same for the other formats. The bounds are far above what cameras and programs write.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from itertools import count

from models.errors import UndecodableImageError

SIGNATURE = b"\xff\xd8\xff"

# A JPEG of 20 MB that is metadata all over has 320 segments.
_MOST_SEGMENTS = 1000
_MOST_JUNK_BYTES = 65_536
# Pillow adds them up one by one, and what it has by then is copied each time.
_MOST_EXIF_SEGMENTS = 64
_MOST_PHOTOSHOP_RESOURCES = 10_000
# Four quantization tables of 16 bits take 518, a frame of 255 components 773.
_MOST_TABLE_BYTES = 1024
# Encoders write about ten. Each is a pass over all coefficients: 4 ms at 50 megapixels, if there is nothing in it.
_MOST_SCANS = 100
_MOST_SEGMENTS_BETWEEN_SCANS = 10_000

_SOF = frozenset({*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC})
_PROGRESSIVE = frozenset({0xC2, 0xC6, 0xCA, 0xCE})
_EOI, _SOS, _DQT, _APP1, _APP13 = 0xD9, 0xDA, 0xDB, 0xE1, 0xED
# Those that Pillow and libjpeg take to be markers alone, without a length behind them.
_ALONE = frozenset({*range(0xC0), 0xC8, *range(0xD0, 0xDA), *range(0xF0, 0xFE)})

# One byte 0xFF and the marker: a pattern for all the padding before it would go back through it at each byte.
_MARKER = re.compile(rb"\xff[^\x00\xff]")
_MARKER_AMONG_PIXELS = re.compile(rb"\xff[\xc0-\xcf\xd8-\xfe]")


def check_markers(encoded: bytes) -> None:
    """Nothing, if a JPEG has no more of anything than pictures have. Takes some microseconds. Raises
    UndecodableImageError."""
    header = _Header(encoded)
    at, junk_left = 0, _MOST_JUNK_BYTES
    for segments in count(1):
        found = _MARKER.search(encoded, at, at + junk_left + 2)
        if found is None:
            _refuse(at + junk_left < len(encoded), "there is too much between its markers")
            return
        _refuse(segments > _MOST_SEGMENTS, "it has too many segments")
        junk_left -= found.start() - at
        at = found.end()
        marker = encoded[at - 1]
        if marker in _ALONE:
            continue
        start, at = at, _end(encoded, at)
        if marker == _SOS:
            if header.may_have_more_scans(start):
                _check_scans(encoded, at)
            return
        header.count(marker, start, at)


@dataclass(slots=True)
class _Header:
    """What has been seen of a JPEG before its first scan."""

    encoded: bytes
    exif_segments: int = 0
    resources: int = 0
    components: int = 0
    progressive: bool = False

    def count(self, marker: int, start: int, end: int) -> None:
        """One segment, from its length to its end. Raises UndecodableImageError."""
        if marker in _SOF or marker == _DQT:
            _refuse(end - start > _MOST_TABLE_BYTES, "a table in its header is too long")
        if marker in _SOF:
            self.components = int.from_bytes(self.encoded[start + 7 : start + 8])
            self.progressive = self.progressive or marker in _PROGRESSIVE
        elif marker == _APP1 and self.encoded.startswith(b"Exif\0\0", start + 2):
            self.exif_segments += 1
            _refuse(self.exif_segments > _MOST_EXIF_SEGMENTS, "its Exif data is in too many segments")
        elif marker == _APP13:
            self.resources += self.encoded.count(b"8BIM", start, end)
            _refuse(self.resources > _MOST_PHOTOSHOP_RESOURCES, "it has too many resources of Photoshop")

    def may_have_more_scans(self, first: int) -> bool:
        """`first`: where the first scan says its length, and then its components. With all of them in it, a JPEG that
        is not progressive can have no other."""
        return self.progressive or self.encoded[first + 2 : first + 3] != bytes([self.components])


def _check_scans(encoded: bytes, at: int) -> None:
    """`at`: behind the header of the first scan."""
    # An upper bound, without looking where: pictures inside of metadata count as well, and films behind the picture.
    if encoded.count(b"\xff\xda", at) < _MOST_SCANS:
        return
    scans = 1
    for segments in count(1):
        found = _MARKER_AMONG_PIXELS.search(encoded, at)
        if found is None or found[0][1] == _EOI:
            return
        marker, at = found[0][1], found.end()
        scans += marker == _SOS
        _refuse(scans > _MOST_SCANS, f"it has more than {_MOST_SCANS} scans")
        _refuse(segments > _MOST_SEGMENTS_BETWEEN_SCANS, "it has too many segments")
        if marker not in _ALONE:
            at = _end(encoded, at)


def _end(encoded: bytes, start: int) -> int:
    """Where the segment ends that says its length at `start`, which counts the two bytes that say it."""
    return start + max(2, int.from_bytes(encoded[start : start + 2]))


def _refuse(too_much: bool, reason: str) -> None:  # noqa: FBT001 - a condition, as of assert
    if too_much:
        raise UndecodableImageError("JPEG", reason)
