"""The only importer of prometheus_client: what is counted, under which names, and the exposition.

Label values come from the models that are served, the routes and closed lists, never from a request for inference: the
number of time series is bounded by the configuration. Those of the application exist from the start, those of a model
from when it is served until it is unloaded, so that rate() works from the first event on.
"""

from app.observability.metrics.counts import CountsReader, count_in, create_counts
from app.observability.metrics.exposition import END, content_type_for, families_of
from app.observability.metrics.shared import SharedExposition
from app.observability.metrics.sink import Metrics

__all__ = [
    "END",
    "CountsReader",
    "Metrics",
    "SharedExposition",
    "content_type_for",
    "count_in",
    "create_counts",
    "families_of",
]
