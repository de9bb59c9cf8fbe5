"""Tables and figures as the page shows them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from benchmarks.statistic import figure, spread


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """The lines of a Markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return [f"| {' | '.join(cells)} |" for cells in lines]


def over_rounds(values: Iterable[float]) -> str:
    """The median with least and largest; the value where there is one round; nothing where there is none."""
    there = list(values)
    if not there:
        return ""
    return spread(there).text() if len(there) > 1 else figure(there[0])


def percent(share: float) -> str:
    """1 is 100 %."""
    return f"{share * 100:.1f} %"
