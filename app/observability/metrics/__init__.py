"""Prometheus metrics. This package alone imports prometheus_client.

inference.py and sink.py declare and count those of inference and of HTTP; a value that the runtime can be asked for at
each scrape is a gauge of collectors.py. Counters of HTTP workers are added up without further code (counts.py). Label
values are models, routes and closed lists, never text of a request: the configuration bounds the number of series.
"""

from app.observability.metrics.counts import CountsReader, count_in, create_counts
from app.observability.metrics.exposition import ModelSample, SharedExposition, content_type_for, merge_expositions
from app.observability.metrics.sink import Metrics

__all__ = [
    "CountsReader",
    "Metrics",
    "ModelSample",
    "SharedExposition",
    "content_type_for",
    "count_in",
    "create_counts",
    "merge_expositions",
]
