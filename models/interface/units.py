"""Format bytes and seconds for people, with three significant digits."""

from __future__ import annotations

_KILO = 1000

# From here on a number rounds up to the next unit.
_ALMOST = 999.5


def in_bytes(size: float) -> str:
    """Format in decimal units: 635,866,208 is 636 MB."""
    *units, largest = ("bytes", "kB", "MB", "GB", "TB")
    for unit in units:
        if size < _ALMOST:
            return f"{size:.3g} {unit}"
        size /= _KILO
    return f"{size:.3g} {largest}"


def in_seconds(seconds: float) -> str:
    if seconds >= _ALMOST / _KILO:
        return f"{seconds:.3g} s"
    milliseconds = seconds * _KILO
    return f"{milliseconds:.3g} ms" if milliseconds >= 1 else f"{milliseconds * _KILO:.3g} µs"
