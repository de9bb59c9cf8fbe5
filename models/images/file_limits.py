"""How often Pillow may read from an image file, as a defence against decompression bombs.

Pillow reads headers tag by tag and chunk by chunk in Python, and holds the GIL meanwhile. The limits here stop it for
files of endless tags and chunks; they are far above what cameras and programs write. jpeg_limits.py does the same for
JPEGs, and cost.py predicts the cost of the decode itself.
"""

from __future__ import annotations

from io import BytesIO

from PIL import Image

from models.interface.errors import UndecodableImageError

# Calls of `read` until width and height are known. The pixels may take as many again, or one for each _BYTES_OF_A_READ
# of the file in addition: a PNG in chunks of 200 bytes stays below both limits.
_MOST_HEADER_READS = 4_000
_BYTES_OF_A_READ = 64
_MOST_BYTES_READ = 2**31


class MeteredFile(BytesIO):
    """An encoded image for Pillow. `read` raises UndecodableImageError after too many calls or bytes."""

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
        """Allow as many reads as the pixels may need. Pillow reads each run of a BMP by two reads."""
        runs = image.width * image.height if _is_run_length_encoded(image) else 0
        self._reads_left = _MOST_HEADER_READS + max(runs, self._file_bytes // _BYTES_OF_A_READ)


def _is_run_length_encoded(image: Image.Image) -> bool:
    return any(tile.codec_name == "bmp_rle" for tile in getattr(image, "tile", ()))
