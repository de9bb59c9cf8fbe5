"""Encode metrics in the format that a scraper asks for, at most once per interval for all scrapers together; and merge
the expositions of several servers."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Mapping
from typing import NamedTuple

from prometheus_client.exposition import choose_encoder
from prometheus_client.metrics_core import Metric
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse_prometheus_text
from prometheus_client.registry import Collector

from models.interface.shared_work import SharedWork

_OPENMETRICS = "application/openmetrics-text"

# One Accept header for each of the two formats.
_ACCEPT = {True: f"{_OPENMETRICS}; version=1.0.0", False: "text/plain"}


def encode(metrics: Collector, accept: str) -> tuple[bytes, str]:
    """Return (body, content type): OpenMetrics if the Accept header asks for it, else the Prometheus text format."""
    encoder, content_type = _encoder_for(accept)
    return encoder(metrics), content_type


def content_type_for(accept: str) -> str:
    """Return the content type of the format that the Accept header asks for."""
    return _encoder_for(accept)[1]


def _encoder_for(accept: str) -> tuple[Callable[[Collector], bytes], str]:
    try:
        return choose_encoder(accept)
    except (TypeError, ValueError):
        # It names a version that is not a number.
        return choose_encoder("")


def _is_openmetrics(accept: str) -> bool:
    return content_type_for(accept).startswith(_OPENMETRICS)


class ModelSample(NamedTuple):
    """A sample of a metric that has the label `model`, and its other labels."""

    name: str
    model: str
    labels: Mapping[str, str]
    value: float


class SharedExposition:
    """Runs `build` in a thread, at most once in `max_age_s` seconds per format, and gives all scrapers the result.

    Building costs milliseconds of the core that also answers requests. `build_anew` does the same where `build` may
    itself return an older exposition.
    """

    def __init__(self, build: Callable[[str], tuple[bytes, str]], max_age_s: float) -> None:
        self.build = build
        self.build_anew: Callable[[str], tuple[bytes, str]] | None = None
        self.max_age_s = max_age_s
        self._shared: SharedWork[bool, bytes] = SharedWork()
        self._samples: SharedWork[None, list[ModelSample]] = SharedWork()

    async def exposition(self, accept: str) -> tuple[bytes, str]:
        """Return all metrics as (body, content type), as `encode` does."""
        openmetrics = _is_openmetrics(accept)

        async def build() -> bytes:
            body, _ = await asyncio.to_thread(self.build, _ACCEPT[openmetrics])
            return body

        return await self._shared.result(openmetrics, build, max_age_s=self.max_age_s), content_type_for(accept)

    async def samples_of_models(self) -> list[ModelSample]:
        """Return the samples of models as they are now, without the buckets of histograms."""

        def build() -> list[ModelSample]:
            body, _ = (self.build_anew or self.build)(_ACCEPT[False])
            return _samples_of_models(body.decode())

        # Shared by those who ask while it is built, so that it keeps one core busy at most.
        return await self._samples.result(None, lambda: asyncio.to_thread(build), max_age_s=0)


def _samples_of_models(exposition: str) -> list[ModelSample]:
    # Most lines are buckets, and parsing takes most of the time.
    lines = (line for line in exposition.split("\n") if 'model="' in line and "_bucket{" not in line)
    return [
        ModelSample(sample.name, sample.labels["model"], sample.labels, sample.value)
        for family in parse_prometheus_text("\n".join(lines) + "\n")
        for sample in family.samples
        if "model" in sample.labels
    ]


def merge_expositions(expositions: Mapping[str, str], accept: str, *, label: str) -> tuple[bytes, str]:
    """Return one exposition of several, by their names, as (body, content type).

    Each series gets the name of its exposition as `label`. Arguments and result have the format that `accept` asks for.
    """
    parse = parse_openmetrics if _is_openmetrics(accept) else parse_prometheus_text
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
