"""The text that scrapers read: what prometheus_client's own encoders write, byte for byte, in under half their time.

A process has some thousand series, and a scrape shares its core with requests. Most of what the library's encoders do
is to escape and join the names of a series anew each time; here they are kept.
"""

from __future__ import annotations

from collections.abc import Iterator

from prometheus_client import CollectorRegistry
from prometheus_client.exposition import choose_encoder
from prometheus_client.metrics_core import Metric
from prometheus_client.samples import Exemplar, Sample
from prometheus_client.utils import floatToGoString

# The last line of OpenMetrics.
END = "# EOF\n"
_FAMILY = "# HELP "

_ESCAPES = str.maketrans({"\\": r"\\", "\n": r"\n", '"': r"\""})
_HELP_ESCAPES = str.maketrans({"\\": r"\\", "\n": r"\n"})


def number(value: float) -> str:
    """As Go writes it, whose way both formats have."""
    written: str = floatToGoString(value)  # type: ignore[no-untyped-call]  # it has no annotations
    return written


class Exposition:
    """Of one registry, whose families are counters, gauges and histograms without units, created times and
    timestamps."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._registry = registry
        self._names: dict[tuple[str, ...], str] = {}

    def encode(self, accept: str) -> tuple[bytes, str]:
        """All metrics as (body, content type): OpenMetrics where `accept` asks for it, else Prometheus text."""
        content_type = content_type_for(accept)
        openmetrics = content_type.startswith("application/openmetrics-text")
        lines = self._openmetrics() if openmetrics else self._prometheus_text()
        return "".join(lines).encode(), content_type

    def forget(self) -> None:
        """Keep no names of series that may be there no more."""
        self._names = {}

    def _prometheus_text(self) -> Iterator[str]:
        for metric in self._registry.collect():
            suffix = "_total" if metric.type == "counter" else ""
            yield _head(metric, metric.name + suffix, _HELP_ESCAPES)
            for sample in metric.samples:
                yield f"{self._name(sample)} {number(sample.value)}\n"

    def _openmetrics(self) -> Iterator[str]:
        for metric in self._registry.collect():
            yield _head(metric, metric.name, _ESCAPES)
            for sample in metric.samples:
                exemplar = _exemplar(sample.exemplar) if sample.exemplar else ""
                yield f"{self._name(sample)} {number(sample.value)}{exemplar}\n"
        yield END

    def _name(self, sample: Sample) -> str:
        """The series as it is written, name and labels. One sample name always has the same labels, in one order."""
        key = (sample.name, *sample.labels.values())
        name = self._names.get(key)
        if name is None:
            name = self._names[key] = sample.name + _labels(sample.labels)
        return name


def content_type_for(accept: str) -> str:
    """Of what a scraper gets that asks by that Accept header."""
    try:
        return choose_encoder(accept)[1]
    except (TypeError, ValueError):
        # A version that is no number.
        return choose_encoder("")[1]


def _head(metric: Metric, name: str, escapes: dict[int, str]) -> str:
    return f"# HELP {name} {metric.documentation.translate(escapes)}\n# TYPE {name} {metric.type}\n"


def _labels(labels: dict[str, str]) -> str:
    written = ",".join(f'{name}="{value.translate(_ESCAPES)}"' for name, value in sorted(labels.items()))
    return f"{{{written}}}" if written else ""


def _exemplar(exemplar: Exemplar) -> str:
    return f" # {_labels(exemplar.labels)} {number(exemplar.value)} {exemplar.timestamp}"


def families_of(exposition: str) -> Iterator[tuple[str, list[str]]]:
    """Of an exposition as it is written here, in either format: what is said of each family, in lines that begin with
    #, and the lines of its series, if it has any."""
    for family in exposition.removesuffix(END).split(_FAMILY)[1:]:
        lines = (_FAMILY + family).splitlines(keepends=True)
        series = [line for line in lines if not line.startswith("#")]
        yield "".join(lines[: len(lines) - len(series)]), series
