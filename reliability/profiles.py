"""ICC profiles made of tables (ICC.1:2022, 10.10), as those of printers."""

from __future__ import annotations

import struct

import numpy as np
from numpy.typing import NDArray

_VERSION_2 = 0x02400000
_D50 = (63_190, 65_536, 54_061)
_STRAIGHT = struct.pack(">2H", 0, 65_535)
_SAME = struct.pack(">9i", 65_536, 0, 0, 0, 65_536, 0, 0, 0, 65_536)


def of_tables(lab: NDArray[np.float64]) -> bytes:
    """Return a profile of RGB or CMYK by the CIELAB colours of a grid of its values, the first of which changes
    slowest: (steps, steps, steps, 3) or (steps, steps, steps, steps, 3)."""
    inputs = lab.ndim - 1
    # In version 2, 0xFF00 stands for a lightness of 100, and 0x8000 for an a or b of 0.
    encoded = np.rint((lab + np.array([0, 128, 128])) * [652.8, 256, 256]).astype(">u2")
    table = b"mft2" + bytes(4) + bytes([inputs, 3, len(lab), 0]) + _SAME + struct.pack(">2H", 2, 2)
    table += _STRAIGHT * inputs + encoded.tobytes() + _STRAIGHT * 3
    return _profile(b"CMYK" if inputs == 4 else b"RGB ", {b"A2B0": table})  # noqa: PLR2004 - inks


def _profile(space: bytes, tags: dict[bytes, bytes]) -> bytes:
    directory, start = struct.pack(">I", len(tags)), 128 + 4 + 12 * len(tags)
    for name, content in tags.items():
        directory += struct.pack(">4sII", name, start, len(content))
        start += len(content)
    header = struct.pack(">I4xI4s4s4s12x4s28x3i", start, _VERSION_2, b"prtr", space, b"Lab ", b"acsp", *_D50)
    return header.ljust(128, b"\0") + directory + b"".join(tags.values())
