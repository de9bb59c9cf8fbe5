"""A client of Prometheus's HTTP API: queries, alerts, rules and exemplars."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from urllib.error import HTTPError
from urllib.parse import urlencode
from urllib.request import urlopen

_TIMEOUT_S = 30


class QueryError(Exception):
    """Prometheus rejected an expression or failed to evaluate it."""


@dataclass(frozen=True, slots=True)
class Sample:
    labels: Mapping[str, str]
    value: float


@dataclass(frozen=True, slots=True)
class Prometheus:
    """The Prometheus server at `address`, http://host:port."""

    address: str

    def query(self, expression: str) -> list[Sample]:
        """Return the instant vector of `expression` now. Raises QueryError."""
        found = self._get("query", query=expression)
        return [Sample(one["metric"], float(one["value"][1])) for one in found["result"]]

    def has_numbers(self, expression: str) -> bool:
        """Return True if a sample of `expression` is a finite number. Raises QueryError."""
        return any(math.isfinite(sample.value) for sample in self.query(expression))

    def alerts(self, *states: str) -> set[str]:
        """Return the names of the alerts in one of `states`, which are pending and firing."""
        return {alert["labels"]["alertname"] for alert in self._get("alerts")["alerts"] if alert["state"] in states}

    def failing_rules(self) -> dict[str, str]:
        """Return the rules whose last evaluation failed, as reasons by name."""
        rules = [rule for group in self._get("rules")["groups"] for rule in group["rules"]]
        return {rule["name"]: rule.get("lastError", rule["health"]) for rule in rules if rule["health"] == "err"}

    def exemplars(self, expression: str, *, start: float, end: float) -> list[Mapping[str, str]]:
        """Return the labels of the exemplars of the series in `expression`; `start` and `end` in Unix seconds."""
        found = self._get("query_exemplars", query=expression, start=str(start), end=str(end))
        return [exemplar["labels"] for series in found for exemplar in series["exemplars"]]

    def _get(self, path: str, **parameters: str) -> Any:
        try:
            with urlopen(  # noqa: S310 - a local http address
                f"{self.address}/api/v1/{path}?{urlencode(parameters)}", timeout=_TIMEOUT_S
            ) as answer:
                return json.load(answer)["data"]
        except HTTPError as error:
            with error:
                raise QueryError(f"{path} {parameters}: {error.read().decode(errors='replace')}") from None
