"""Grafana dashboards as code. `python -m observe.dashboards` writes the JSON files that Grafana provisions."""

from observe.dashboards.autograd import autograd
from observe.dashboards.panels import as_json
from observe.dashboards.service import service

__all__ = ["FILES"]

# Content by file name in docker/grafana/dashboards.
FILES = {"service.json": as_json(service()), "autograd.json": as_json(autograd())}
