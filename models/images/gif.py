"""Read the blocks of a GIF before its first picture (GIF89a, sections 17 to 26): Pillow gets only the picture, and the
cost of a decode is predicted.

Pillow reads comments and XMP packets block by block in Python: the latter have a block for each 80 bytes of text.
"""

from __future__ import annotations

import re
import struct
from typing import NamedTuple

from models.images.costs import Picture
from models.interface.errors import UndecodableImageError

_SCREEN_BYTES = 13
_TRAILER, _EXTENSION, _PICTURE = 0x3B, 0x21, 0x2C
_BLOCK = re.compile(rb"[\x21\x2c\x3b]")
_GRAPHIC_CONTROL = 0xF9
_FRAME = struct.Struct("<HHHH")
# Reading them takes about 10 ms. An XMP packet of 1 MB has some 13,000.
_MOST_BLOCKS = 50_000
# Bytes that some programs leave between blocks.
_MOST_JUNK_BYTES = 1024
_PIXEL_NS = 20.0


class Gif(NamedTuple):
    """The size, enlarged to the first picture if that is larger than the screen, and the box (left, top, right, bottom)
    of the picture in it. `screen_bytes`: header with the global palette. `control`: the extension before the picture,
    or empty. `picture_at`: position of the picture."""

    width: int
    height: int
    box: tuple[int, int, int, int]
    screen_bytes: int
    control: bytes
    picture_at: int

    def reduced(self, encoded: bytes) -> bytes:
        """Return the GIF without what comes between its header and its first picture."""
        return b"".join((encoded[: self.screen_bytes], self.control, memoryview(encoded)[self.picture_at :]))


def read_gif(encoded: bytes) -> Gif:
    """Raises UndecodableImageError, and struct.error or IndexError if the file ends before its first picture."""
    if encoded[4:6] not in {b"7a", b"9a"}:
        raise UndecodableImageError("GIF", "its version is unknown")
    width, height, flags = struct.unpack_from("<HHB", encoded, 6)
    screen_bytes = at = _SCREEN_BYTES + (3 * 2 ** ((flags & 7) + 1) if flags & 0x80 else 0)
    control = b""
    blocks_left = _MOST_BLOCKS
    while True:
        found = _BLOCK.search(encoded, at, at + _MOST_JUNK_BYTES)
        if found is None or encoded[found.start()] == _TRAILER:
            raise UndecodableImageError("GIF", "it has no picture")
        start = at = found.start()
        if encoded[at] == _PICTURE:
            break
        at += 2
        while True:
            blocks_left -= 1
            if blocks_left < 0:
                raise UndecodableImageError("GIF", "it consists of too many pieces")
            length = encoded[at]
            at += 1 + length
            # The last block of an extension is empty.
            if not length:
                break
        if encoded[start + 1] == _GRAPHIC_CONTROL:
            control = encoded[start:at]
    left, top, across, down = _FRAME.unpack_from(encoded, at + 1)
    if not across or not down:
        raise UndecodableImageError("GIF", "its first picture has no pixels")
    box = left, top, left + across, top + down
    return Gif(max(width, box[2]), max(height, box[3]), box, screen_bytes, control, at)


def cost(encoded: bytes, _enough: int) -> Picture:
    """Of the first frame of a GIF."""
    read = read_gif(encoded)
    pixels = read.width * read.height
    # Pillow gets a copy of the file.
    return Picture(read.width, read.height, pixels * _PIXEL_NS, pixels * 5 + len(encoded))
