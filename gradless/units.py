"""Format bytes and seconds with three significant figures."""

from __future__ import annotations

_KILO = 1000

# A figure from here on rounds up to the next unit.
_ROUNDS_UP = 999.5


def in_bytes(size: float) -> str:
    """Format a size in decimal units: 635,866,208 becomes "636 MB"."""
    *units, largest = ("bytes", "kB", "MB", "GB", "TB")
    for unit in units:
        if size < _ROUNDS_UP:
            return f"{size:.3g} {unit}"
        size /= _KILO
    return f"{size:.3g} {largest}"


def in_seconds(seconds: float) -> str:
    """Format a duration in s, ms or µs: 0.00425 becomes "4.25 ms"."""
    if seconds >= _ROUNDS_UP / _KILO:
        return f"{seconds:.3g} s"
    milliseconds = seconds * _KILO
    return f"{milliseconds:.3g} ms" if milliseconds >= 1 else f"{milliseconds * _KILO:.3g} µs"
