"""Read numbers from the first directory of a TIFF; EXIF data have the same layout.

Pillow reads whole directories in Python, entry by entry; this module reads only the requested entries. The layout is
that of TIFF 6.0, section 2, and of BigTIFF.
"""

from __future__ import annotations

import struct
from collections.abc import Collection

_BIG_TIFF = 43
# Letters of the struct module for the types of whole numbers: BYTE, SHORT, LONG, IFD, LONG8, IFD8.
_NUMBERS = {1: "B", 3: "H", 4: "I", 13: "I", 16: "Q", 18: "Q"}


def read_numbers(data: bytes, tags: Collection[int]) -> dict[int, int]:
    """Return the first value of each of the `tags` that exists and is a whole number. Of several entries for one tag
    the last counts. Raises struct.error if the directory is not inside `data`."""
    order = "<" if data.startswith(b"II") else ">"
    (version,) = struct.unpack_from(order + "H", data, 2)
    big = version == _BIG_TIFF
    offset, count, value = ("Q", "Q", "8s") if big else ("I", "H", "4s")
    (start,) = struct.unpack_from(order + offset, data, 8 if big else 4)
    if start > len(data):
        # struct raises OverflowError for offsets over 63 bits.
        raise struct.error("the directory starts after the end of the data")
    (entries,) = struct.unpack_from(order + count, data, start)
    start += struct.calcsize(order + count)
    entry = struct.Struct(order + "HH" + offset + value)
    end = start + entries * entry.size
    if end > len(data):
        # As other readers do, use the entries that exist.
        end = start + (len(data) - start) // entry.size * entry.size
    numbers: dict[int, int] = {}
    for tag, kind, values, inline in entry.iter_unpack(data[start:end]):
        letter = _NUMBERS.get(kind)
        if tag not in tags or letter is None or not values:
            continue
        size = struct.calcsize(letter)
        at = 0 if values * size <= len(inline) else struct.unpack(order + offset, inline)[0]
        source = inline if values * size <= len(inline) else data
        if at + size <= len(source):
            (numbers[tag],) = struct.unpack_from(order + letter, source, at)
    return numbers
