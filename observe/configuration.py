"""The committed configuration of Prometheus and Grafana: adapt it to another address and interval, and collect the
PromQL expressions of dashboards (panels and variables), recording rules and alerts."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from observe import DASHBOARDS, PROMETHEUS

# The comparison at the end of an alert's expression.
_COMPARISON = re.compile(r"\s*(==|>)\s*[\d.]+\s*$")


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


@dataclass(frozen=True, slots=True)
class Expression:
    """PromQL without dashboard variables, and the panel, variable, rule or alert that it comes from."""

    source: str
    text: str


def all_expressions(window: str) -> list[Expression]:
    """Return all expressions, for all instances and models, with rates over `window`, such as 1m.

    Alerts come without their comparison, because the whole expression is empty while there is no fault.
    """
    return [*_of_dashboards(window), *_of_rules()]


def _of_dashboards(window: str) -> Iterator[Expression]:
    for path in sorted(DASHBOARDS.glob("*.json")):
        dashboard = json.loads(path.read_text())
        for variable in dashboard["templating"]["list"]:
            if variable["type"] == "datasource":
                continue
            yield Expression(f"{path.stem}: ${variable['name']}", _filled(_selector(variable), window))
        for panel in dashboard["panels"]:
            for target in panel.get("targets", ()):
                yield Expression(f"{path.stem}: {panel['title']}", _filled(target["expr"], window))


def _of_rules() -> Iterator[Expression]:
    for path in sorted((PROMETHEUS / "rules").glob("*.yml")):
        for group in yaml.safe_load(path.read_text())["groups"]:
            for rule in group["rules"]:
                if "record" in rule:
                    yield Expression(rule["record"], rule["record"])
                    yield Expression(f"{rule['record']}, as recorded", rule["expr"])
                else:
                    yield Expression(rule["alert"], _compared(rule["expr"]))


def _compared(expression: str) -> str:
    compared, count = _COMPARISON.subn("", expression)
    if not count:
        raise ValueError(f"the expression of an alert must end with a comparison with a number: {expression}")
    return compared


def _selector(variable: dict[str, Any]) -> str:
    found = re.fullmatch(r"label_values\((.*), (\w+)\)", variable["query"]["query"])
    if found is None:
        raise ValueError(f"a variable must be label_values(SELECTOR, LABEL): {variable['query']}")
    return f"count by ({found[2]}) ({found[1]})"


def _filled(expression: str, window: str) -> str:
    return expression.replace("$__rate_interval", window).replace("$instance", ".+").replace("$model", ".+")
