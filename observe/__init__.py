"""Observability for operators: dashboards as code, and `make observe`, which runs a real Prometheus and traffic of
every kind against a real server. tests/observability checks every expression against that Prometheus."""

from __future__ import annotations

from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PROMETHEUS = ROOT / "docker/prometheus"
GRAFANA = ROOT / "docker/grafana"
DASHBOARDS = GRAFANA / "dashboards"
