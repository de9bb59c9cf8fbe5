"""The metrics of all replicas as those of one scrape: each series with the replica it is of."""

from __future__ import annotations

from collections.abc import Mapping

from app.observability.metrics import END, families_of


def merged(expositions: Mapping[str, str]) -> str:
    """One exposition of those of several replicas, by their ids, all in one format: Prometheus text or OpenMetrics.
    What is said of a family stands once, and its series follow one another, as both formats want it."""
    families: dict[str, list[str]] = {}
    for replica, exposition in expositions.items():
        for head, series in families_of(exposition):
            families.setdefault(head, []).extend(_of_replica(line, replica) for line in series)
    lines = [line for head, series in families.items() for line in (head, *series)]
    ended = any(exposition.endswith(END) for exposition in expositions.values())
    return "".join(lines) + (END if ended else "")


def _of_replica(line: str, replica: str) -> str:
    # Labels follow the name at once, or there are none: an exemplar has braces too, further on.
    name = line.partition(" ")[0].partition("{")[0]
    rest = line[len(name) :]
    own = f'{name}{{replica="{replica}"'
    return f"{own},{rest[1:]}" if rest.startswith("{") else f"{own}}}{rest}"
