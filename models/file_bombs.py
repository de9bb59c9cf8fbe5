"""What a file can cost that its header's width and height do not tell: time and memory that decoders spend on what is
around the pixels. Between images.py, which opens files, and decoders that do as files say."""

from __future__ import annotations

import logging
import warnings
from io import BytesIO

from PIL import Image

from models.errors import TooManyPixelsError, UndecodableImageError

# Chunks, segments and blocks that Pillow reads one by one, in Python: 20 MB of empty ones took five to ten seconds, in
# which no other thread ran any. Photographs have dozens; a PNG of 20 MB in pieces of 4 kB takes 20,000 reads.
_MOST_READS = 50_000

# Each goes over every coefficient once more: a scan of 59 bytes took 2.8 ms of a picture of 36 megapixels. Encoders
# write ten or so.
_MOST_SCANS = 200

# Pillow joins them, each time all that came before: 10,000 took half a second. Cameras write one.
_MOST_EXIF_SEGMENTS = 64
_UNUSUALLY_MANY_READS = 200

_START_OF_SCAN = b"\xff\xda"

# Pillow decodes run lengths pixel by pixel in Python.
_MOST_RUN_LENGTH_PIXELS = 1_000_000

# RLE8 and RLE4.
_RUN_LENGTHS = frozenset({1, 2})

# Tags of TIFF 6.0.
_TILE_WIDTH, _TILE_LENGTH = 322, 323

# One line for each tag of a TIFF that lies, of which there may be 20,000.
logging.getLogger("PIL").setLevel(logging.ERROR)
warnings.filterwarnings("ignore", module=r"PIL\.")


class BoundedReads(BytesIO):
    """The bytes of an image, which end with an UndecodableImageError when they are read in too many pieces."""

    _reads = 0

    def read(self, size: int | None = -1, /) -> bytes:
        self._reads += 1
        if self._reads > _MOST_READS:
            raise UndecodableImageError(None, f"it consists of more than {_MOST_READS} pieces")
        # Counted only in a file that has more of everything than photographs have: it takes as long as opening one.
        if self._reads == _UNUSUALLY_MANY_READS and self.getvalue().count(b"Exif\0\0") > _MOST_EXIF_SEGMENTS:
            raise UndecodableImageError("JPEG", f"it has more than {_MOST_EXIF_SEGMENTS} Exif segments")
        return super().read(size)


def check_layout(image: Image.Image, encoded: bytes, max_pixels: int) -> None:
    """Of an image that has just been opened from `encoded`, whose width and height are within limits. Raises
    TooManyPixelsError for tiles that are not, UndecodableImageError for what would take too long."""
    match image.format:
        case "JPEG" | "MPO" if not _has_one_scan(image, encoded) and encoded.count(_START_OF_SCAN) > _MOST_SCANS:
            raise UndecodableImageError("JPEG", f"it has more than {_MOST_SCANS} scans")
        case "TIFF":
            tags = image.tag_v2  # type: ignore[attr-defined]  # Pillow's images of this format have it
            width, length = (_number(tags.get(tag)) for tag in (_TILE_WIDTH, _TILE_LENGTH))
            if width * length > max_pixels:
                raise TooManyPixelsError(width, length, max_pixels)
        case "BMP" if image.info.get("compression") in _RUN_LENGTHS:
            if image.width * image.height > _MOST_RUN_LENGTH_PIXELS:
                raise UndecodableImageError("BMP", f"run lengths are read of {_MOST_RUN_LENGTH_PIXELS} pixels at most")


def _has_one_scan(image: Image.Image, encoded: bytes) -> bool:
    """Whether a JPEG's first scan is its last: sequential, and of all components. Pillow has read to that scan's end of
    header, which is marker, length, their number, two bytes for each, three more (ITU-T T.81, B.2.3)."""
    components: int = image.layers  # type: ignore[attr-defined]  # Pillow's images of this format have it
    begins_at = image.fp.tell() - 8 - 2 * components  # type: ignore[attr-defined]  # and images of files have this
    header = encoded[begins_at : begins_at + 5]
    return not image.info.get("progressive") and header[:2] == _START_OF_SCAN and header[4:] == bytes([components])


def _number(tag: object) -> int:
    return tag if isinstance(tag, int) else 0
