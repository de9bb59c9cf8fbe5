"""Adapt the committed Prometheus configuration to another address and interval."""

from __future__ import annotations

from pathlib import Path

import yaml

from observe.places import PROMETHEUS


def configure(folder: Path, target: str, *, interval_s: float = 15, rules: Path = PROMETHEUS / "rules") -> Path:
    """Write docker/prometheus/prometheus.yml into `folder`, for the server at `target` (host:port), with `interval_s`
    between scrapes and between evaluations of rules. Return its path."""
    configuration = yaml.safe_load((PROMETHEUS / "prometheus.yml").read_text())
    interval = f"{round(interval_s * 1000)}ms"
    configuration["global"] = {"scrape_interval": interval, "evaluation_interval": interval}
    configuration["rule_files"] = [f"{rules}/*.yml"]
    [job] = configuration["scrape_configs"]
    job["static_configs"] = [{"targets": [target]}]
    path = folder / "prometheus.yml"
    path.write_text(yaml.safe_dump(configuration))
    return path
