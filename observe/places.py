"""Paths of the configuration of Prometheus and Grafana."""

from __future__ import annotations

from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PROMETHEUS = ROOT / "docker/prometheus"
GRAFANA = ROOT / "docker/grafana"
DASHBOARDS = GRAFANA / "dashboards"
