"""Markdown tables and figures."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from benchmarks.statistic import figure, spread


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Return the lines of a Markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return [f"| {' | '.join(cells)} |" for cells in lines]


def over_rounds(values: Iterable[float]) -> str:
    """Return the median with least and largest, a single value alone, or "" without values."""
    there = list(values)
    if not there:
        return ""
    return spread(there).text() if len(there) > 1 else figure(there[0])


def percent(share: float) -> str:
    """Return `share` as text; 1 is 100 %."""
    return f"{share * 100:.1f} %"
