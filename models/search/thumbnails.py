"""Make the thumbnails of an index when it is built, so that the server never reads the image files."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from io import BytesIO
from pathlib import Path

from PIL import Image

from models.hardware.cores import available_cores, use_one_core_in_this_thread
from models.images.preprocessing import decode_image
from models.interface.errors import ImageError
from models.interface.request import ImageLimits

# Longer side in pixels: twice the displayed size, for high-resolution screens.
_SIDE = 192
_QUALITY = 80


class Thumbnails:
    """Makes thumbnails in a thread pool, under the server's limits."""

    def __init__(self, pool: ThreadPoolExecutor, limits: ImageLimits, max_file_bytes: int) -> None:
        self._pool = pool
        self._make = partial(_make_one, limits=limits, max_file_bytes=max_file_bytes)

    def of(self, paths: Sequence[str]) -> list[bytes | None]:
        """Return a JPEG file per path, or None if the file is missing or cannot be decoded."""
        return list(self._pool.map(self._make, paths))


@contextmanager
def thumbnails(limits: ImageLimits, max_file_bytes: int) -> Iterator[Thumbnails]:
    """Yield a thumbnail maker with one thread per core."""
    with ThreadPoolExecutor(available_cores(), initializer=use_one_core_in_this_thread) as pool:
        yield Thumbnails(pool, limits, max_file_bytes)


def _make_one(path: str, limits: ImageLimits, max_file_bytes: int) -> bytes | None:
    try:
        if Path(path).stat().st_size > max_file_bytes:
            return None
        pixels = decode_image(Path(path).read_bytes(), limits, enough=2 * _SIDE)
    except (OSError, ImageError):
        return None
    picture = Image.fromarray(pixels.permute(1, 2, 0).numpy())
    picture.thumbnail((_SIDE, _SIDE))
    file = BytesIO()
    picture.save(file, "JPEG", quality=_QUALITY)
    return file.getvalue()
