"""The committed configuration of Prometheus, for other addresses and at another pace."""

from __future__ import annotations

from pathlib import Path

import yaml

from observe.places import PROMETHEUS


def configure(folder: Path, target: str, *, every_s: float = 15, rules: Path = PROMETHEUS / "rules") -> Path:
    """Write docker/prometheus/prometheus.yml for the server at `target`, host:port, scraped and judged every so many
    seconds, into `folder`."""
    configuration = yaml.safe_load((PROMETHEUS / "prometheus.yml").read_text())
    pace = f"{round(every_s * 1000)}ms"
    configuration["global"] = {"scrape_interval": pace, "evaluation_interval": pace}
    configuration["rule_files"] = [f"{rules}/*.yml"]
    [job] = configuration["scrape_configs"]
    job["static_configs"] = [{"targets": [target]}]
    path = folder / "prometheus.yml"
    path.write_text(yaml.safe_dump(configuration))
    return path
