"""What an image file is, and how often its reader may read from it.

Pillow reads headers tag by tag and chunk by chunk in Python, without letting the GIL go for long. The bounds here end
that for files of endless tags and chunks; they are far above what cameras and programs write. jpeg_limits.py does the
same for JPEGs, and cost.py predicts what the decode itself will cost.
"""

from __future__ import annotations

from io import BytesIO

from PIL import Image

from models.interface.errors import UndecodableImageError

# Reads until width and height are known, and for the pixels: a PNG in chunks of 200 bytes is read.
_MOST_HEADER_READS = 4_000
_BYTES_OF_A_READ = 64
_MOST_BYTES_READ = 2**31

# First bytes of the formats that are read here, as Pillow's readers accept them.
_SIGNATURES = (
    (b"\xff\xd8\xff", "JPEG"),
    (b"\x89PNG\r\n\x1a\n", "PNG"),
    (b"GIF87a", "GIF"),
    (b"GIF89a", "GIF"),
    (b"BM", "BMP"),
    (b"II*\0", "TIFF"),
    (b"MM\0*", "TIFF"),
    (b"II+\0", "TIFF"),
    (b"MM\0+", "TIFF"),
)


def format_of(encoded: bytes) -> str | None:
    """The format whose signature `encoded` begins with, one of decode.FORMATS; None for anything else."""
    if encoded.startswith(b"RIFF") and encoded[8:12] == b"WEBP":
        return "WEBP"
    return next((name for signature, name in _SIGNATURES if encoded.startswith(signature)), None)


class MeteredFile(BytesIO):
    """An encoded image for Pillow, which may read from it a number of times and no more.

    Raises UndecodableImageError from `read`.
    """

    def __init__(self, encoded: bytes) -> None:
        super().__init__(encoded)
        self._file_bytes = len(encoded)
        self._reads_left = _MOST_HEADER_READS
        self._bytes_left = _MOST_BYTES_READ

    def read(self, size: int | None = -1, /) -> bytes:
        piece = super().read(size)
        self._reads_left -= 1
        self._bytes_left -= len(piece)
        if self._reads_left < 0 or self._bytes_left < 0:
            raise UndecodableImageError(None, "it consists of too many pieces")
        return piece

    def grant_pixels(self, image: Image.Image) -> None:
        """From now on as many reads as its pixels may need. A run of a BMP is two, and Pillow reads each by itself."""
        runs = image.width * image.height if _is_run_length_encoded(image) else 0
        self._reads_left = _MOST_HEADER_READS + max(runs, self._file_bytes // _BYTES_OF_A_READ)


def _is_run_length_encoded(image: Image.Image) -> bool:
    return any(tile.codec_name == "bmp_rle" for tile in getattr(image, "tile", ()))
