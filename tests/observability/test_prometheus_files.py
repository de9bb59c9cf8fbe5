"""docker/prometheus: promtool accepts the files, and each alert has cases in which it fires and does not fire."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml

from observe import PROMETHEUS

CASES = Path(__file__).with_name("alerts.yml")

Promtool = Callable[..., subprocess.CompletedProcess[str]]


def loaded(path: Path) -> Any:
    return yaml.safe_load(path.read_text())


def alerts() -> list[dict[str, Any]]:
    return [rule for group in loaded(PROMETHEUS / "rules/alerts.yml")["groups"] for rule in group["rules"]]


def test_configuration_and_rules_are_valid(promtool: Promtool) -> None:
    checked = promtool("check", "config", PROMETHEUS / "prometheus.yml")
    assert checked.returncode == 0, checked.stderr
    assert "2 rule files found" in checked.stdout


def test_every_case_of_alerts_and_rules_passes(promtool: Promtool) -> None:
    tested = promtool("test", "rules", CASES)
    assert tested.returncode == 0, tested.stderr


def test_every_alert_has_a_case_in_which_it_fires_and_one_in_which_it_does_not() -> None:
    names = {alert["alert"] for alert in alerts()}
    tests = [test["alert_rule_test"] for test in loaded(CASES)["tests"] if "alert_rule_test" in test]
    cases = [case for test in tests for case in test]
    assert {case["alertname"] for case in cases if case["exp_alerts"]} == names
    not_firing = [
        {case["alertname"] for case in test} for test in tests if not any(case["exp_alerts"] for case in test)
    ]
    assert set().union(*not_firing) == names


def test_every_alert_has_a_severity_a_summary_and_a_description() -> None:
    for alert in alerts():
        assert alert["labels"]["severity"] in {"critical", "warning"}
        assert alert["annotations"].keys() == {"summary", "description"}
