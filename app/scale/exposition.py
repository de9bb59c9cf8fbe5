"""The metrics of all replicas as those of one scrape: each series with the replica it is of."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

_FAMILY = "# HELP "
_END = "# EOF\n"


def merged(expositions: Mapping[str, str]) -> str:
    """One exposition of those of several replicas, by their ids, all in one format: Prometheus text or OpenMetrics.
    What is said of a family stands once, and its series follow one another, as both formats want it."""
    families: dict[str, list[str]] = {}
    for replica, exposition in expositions.items():
        for head, series in _families(exposition):
            families.setdefault(head, []).extend(_of_replica(line, replica) for line in series)
    lines = [line for head, series in families.items() for line in (head, *series)]
    ended = any(exposition.endswith(_END) for exposition in expositions.values())
    return "".join(lines) + (_END if ended else "")


def _families(exposition: str) -> Iterator[tuple[str, list[str]]]:
    """What is said of each family, in lines that begin with #, and the lines of its series, if it has any."""
    for family in exposition.removesuffix(_END).split(_FAMILY)[1:]:
        lines = (_FAMILY + family).splitlines(keepends=True)
        series = [line for line in lines if not line.startswith("#")]
        yield "".join(lines[: len(lines) - len(series)]), series


def _of_replica(line: str, replica: str) -> str:
    # Labels follow the name at once, or there are none: an exemplar has braces too, further on.
    name = line.partition(" ")[0].partition("{")[0]
    rest = line[len(name) :]
    own = f'{name}{{replica="{replica}"'
    return f"{own},{rest[1:]}" if rest.startswith("{") else f"{own}}}{rest}"
