"""Grafana's dashboards, as code. `python -m observe.dashboards` writes the JSON that Grafana is provisioned with."""

from observe.dashboards.autograd import autograd
from observe.dashboards.panels import as_json
from observe.dashboards.service import service

__all__ = ["FILES"]

# File names in docker/grafana/dashboards, with what they hold.
FILES = {"service.json": as_json(service()), "autograd.json": as_json(autograd())}
