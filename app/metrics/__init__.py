"""The only importer of prometheus_client: what is counted, under which names, and the exposition.

Label values come from the settings, the routes and closed lists, never from a request: the number of time series
is bounded by the configuration. All of them exist from the start, so that rate() works from the first event on.
"""

from app.metrics.sink import Metrics

__all__ = ["Metrics"]
