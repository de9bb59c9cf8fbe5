"""The welcome text: its commands work as printed."""

from __future__ import annotations

import json
import re
import subprocess
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest


def commands_of(server: Any) -> list[str]:
    return [line.strip() for line in server.log if "curl" in line]


@pytest.fixture
def commands(server: Any) -> list[str]:
    return commands_of(server)


def run_in_shell(command: str) -> Any:
    done = subprocess.run(["sh", "-c", command], capture_output=True, timeout=240, check=True)
    assert done.stderr == b""
    return json.loads(done.stdout)


def test_the_welcome_prints_three_commands(commands: list[str]) -> None:
    assert len(commands) == 3


def test_the_welcome_text_has_the_address_of_the_page(server: Any) -> None:
    (address,) = [found[1] for line in server.log if (found := re.search(r"(http://\S+) in a browser", line))]
    with urllib.request.urlopen(address, timeout=30) as page:  # noqa: S310 - our own
        assert b"<title>gradless</title>" in page.read()


def test_the_first_printed_command_names_an_analog_clock_first(commands: list[str]) -> None:
    answer = run_in_shell(commands[0])
    assert answer["results"][0]["predictions"][0]["label"] == "analog clock"


def test_the_second_printed_command_answers_a_feature_vector(commands: list[str]) -> None:
    answer = run_in_shell(commands[1])
    assert len(answer["results"][0]["features"]) == answer["dimensions"] == 1280


def test_the_third_printed_command_shows_that_only_the_grad_mode_retains_memory(
    start_server: Callable[..., Any], small_model: Path
) -> None:
    # It compares seven ways to run batches of eight, twelve times each.
    server = start_server(GRADLESS_MODELS=str(small_model), GRADLESS_BACKEND="eager", GRADLESS_LOG_FORMAT="console")
    answer = run_in_shell(commands_of(server)[2])
    retained = {arm["arm"]: arm["retained_bytes"] for arm in answer["arms"]}
    assert retained.pop("grad") > 0
    assert set(retained.values()) == {0}
