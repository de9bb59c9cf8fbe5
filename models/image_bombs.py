"""What a file can cost that its header's width and height do not say: refused as it is read, before any decode.

Tags and chunks without end, tiles larger than the picture: loops and allocations in decoders, many of them in Python,
where nobody else is answered meanwhile. models/jpeg_bombs.py is the same for JPEGs, whose header Pillow need not see
for it. The bounds are far above what cameras and programs write.
"""

from __future__ import annotations

from io import BytesIO

from PIL import Image

from models.errors import TooManyPixelsError, UndecodableImageError
from models.limits import ImageLimits

# Until width and height are known, and for the pixels: a PNG in chunks of 200 bytes is read.
_MOST_HEADER_READS = 4_000
_BYTES_OF_A_READ = 64
_MOST_BYTES_READ = 2**31

# Pillow decodes these in Python, with a loop over pixels in the worst case: 0.12 s for each million.
_MOST_RLE_PIXELS = 2_000_000

_TILE_WIDTH, _TILE_LENGTH = 322, 323


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


def check_opened(image: Image.Image, limits: ImageLimits) -> None:
    """What Pillow knows by now, and does not mind. Raises TooManyPixelsError, UndecodableImageError."""
    tile = _tile_size(image)
    if tile[0] * tile[1] > limits.max_pixels:
        raise TooManyPixelsError(*tile, limits.max_pixels)
    if _is_run_length_encoded(image) and image.width * image.height > _MOST_RLE_PIXELS:
        reason = f"run-length encoded ones are read up to {_MOST_RLE_PIXELS} pixels"
        raise UndecodableImageError(image.format, reason)


def pixels_at_once(image: Image.Image) -> int:
    """How many pixels there are memory for while it is decoded, at least."""
    width, height = _tile_size(image)
    return max(image.width * image.height, width * height)


def _tile_size(image: Image.Image) -> tuple[int, int]:
    """Width and height of the tiles that a TIFF is cut into, whatever it is large itself: libtiff unpacks whole ones.
    (0, 0) where there are none. Raises UndecodableImageError."""
    tags = getattr(image, "tag_v2", None)
    if image.format != "TIFF" or tags is None:
        return (0, 0)
    width, height = tags.get(_TILE_WIDTH, 0), tags.get(_TILE_LENGTH, 0)
    if not isinstance(width, int) or not isinstance(height, int):
        # Pillow gives bytes for what is written as bytes, which libtiff takes for a number.
        raise UndecodableImageError(image.format, "the size of its tiles is no number")
    return (width, height)


def _is_run_length_encoded(image: Image.Image) -> bool:
    return any(tile.codec_name == "bmp_rle" for tile in getattr(image, "tile", ()))
