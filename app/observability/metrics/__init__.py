"""Prometheus metrics. This package alone imports prometheus_client.

To add a metric, for example of images whose output is not finite, edit four files:

1. models/interface/telemetry.py: an event of `Telemetry`, or a new field of the record that an
   existing event carries.
2. The module where it happens, here models/inference/pipeline.py: report the event. A module without a `Telemetry`,
   such as models/images/decode_pool.py, must first receive one, or return the value to pipeline.py.
3. families.py: declare the name, help text, labels and the values of each label; all series then start at zero.
4. sink.py: the event's method of `Metrics` adds to the family.

A value that the runtime can be asked for at each scrape is a gauge instead: collectors.py alone. Counters of HTTP
workers are added up without further code (counts.py). Label values are models, routes and closed lists, never text of
a request: the configuration bounds the number of series.
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
