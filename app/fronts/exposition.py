"""The metrics of the engine process and its fronts as those of one service."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from app.metrics import END, families_of, number

_EXEMPLAR = " # "

# What each process has of its own, and the service has all of. Other gauges the engine process alone knows.
_ADDED_GAUGES = frozenset({"process_resident_memory_bytes", "process_virtual_memory_bytes", "process_open_fds"})


@dataclass(slots=True)
class _Family:
    head: str
    gauge: bool
    # By name and labels, as they are written: value and exemplar.
    series: dict[str, tuple[float, str]] = field(default_factory=dict)


def added(engine: str, fronts: Sequence[str]) -> str:
    """One exposition of those of the processes, all in one format, Prometheus text or OpenMetrics: counters and
    histograms are added up, gauges are the engine process's."""
    families = {family.head: family for family in _families(engine)}
    for exposition in fronts:
        for told in _families(exposition):
            family = families.setdefault(told.head, _Family(told.head, told.gauge))
            for name, (value, exemplar) in told.series.items():
                if family.gauge and name not in _ADDED_GAUGES:
                    continue
                before, kept = family.series.get(name, (0.0, ""))
                family.series[name] = before + value, kept or exemplar
    lines = [
        family.head + "".join(f"{name} {number(value)}{more}\n" for name, (value, more) in family.series.items())
        for family in families.values()
    ]
    return "".join(lines) + (END if engine.endswith(END) else "")


def _families(exposition: str) -> Iterator[_Family]:
    for head, lines in families_of(exposition):
        family = _Family(head, head.endswith(" gauge\n"))
        for line in lines:
            # No label of ours has it: they are models, routes, and words of closed lists.
            sample, mark, exemplar = line.rstrip("\n").partition(_EXEMPLAR)
            name, _, value = sample.rpartition(" ")
            family.series[name] = float(value), mark + exemplar
        yield family
