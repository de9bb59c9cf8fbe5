"""Combine the metrics of several processes, in two ways.

HTTP workers share counters with the engine process: `add_counts` adds what a worker has counted to the engine's own
series, so that a scrape shows sums and no counter falls when a worker ends. Replicas of Ray Serve run on several
machines: `merge_expositions` labels the series of each.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from prometheus_client.metrics_core import Metric
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse_prometheus_text
from prometheus_client.registry import Collector

from app.observability.metrics.counts import CountsReader
from app.observability.metrics.exposition import encode, is_openmetrics
from app.observability.metrics.families import Families


def add_counts(families: Families, counts: CountsReader) -> None:
    """Add to `families` what another process has counted since the last call."""
    for key, amount, exemplar in counts.changes():
        families.add(key, amount, exemplar)


def merge_expositions(expositions: Mapping[str, str], accept: str, *, label: str) -> tuple[bytes, str]:
    """Return one exposition of several, by their names, as (body, content type).

    Each series gets the name of its exposition as `label`. Arguments and result have the format that `accept` asks for.
    """
    parse = parse_openmetrics if is_openmetrics(accept) else parse_prometheus_text
    families: dict[str, Metric] = {}
    for name, exposition in expositions.items():
        for family in parse(exposition):
            merged = families.setdefault(family.name, Metric(family.name, family.documentation, family.type))
            merged.samples += [sample._replace(labels={label: name} | sample.labels) for sample in family.samples]
    return encode(_Merged(families.values()), accept)


class _Merged(Collector):
    def __init__(self, families: Iterable[Metric]) -> None:
        self._families = families

    def collect(self) -> Iterable[Metric]:
        return self._families
