"""A model that a script has trained elsewhere is served by the steps that the documentation names, and by no others."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx2
import pytest

Run = Callable[..., subprocess.CompletedProcess[bytes]]

SCRIPT = Path(__file__).with_name("fine_tuning.py")
DOCUMENT = Path(__file__).parents[2] / "docs" / "models.md"

EAGER = {"GRADLESS_BACKEND": "eager"}


@pytest.fixture(scope="module")
def trained(warm_command: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of the script's model, held-out pictures and answers."""
    folder = tmp_path_factory.mktemp("trained")
    with (folder / "log").open("wb") as log, warm_command.start([SCRIPT, folder], os.environ, log) as process:
        assert process.wait(280) == 0, (folder / "log").read_text()
    return folder


def documented_steps() -> list[list[str]]:
    """The commands of the section on one's own model, as words."""
    section = DOCUMENT.read_text().split("## Your own model\n")[1]
    block = re.search(r"```sh\n(.*?)```", section, re.DOTALL)
    assert block
    return [words for line in block[1].splitlines() if (words := shlex.split(line, comments=True))]


def test_the_documented_steps_serve_a_state_dict_with_the_accuracy_of_its_script(
    trained: Path, gradless: Run, start_server: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(trained)
    init, check, serve = documented_steps()[:3]
    assert (init[:3], check[:3], serve[:2]) == (
        ["gradless", "models", "init"],
        ["gradless", "models", "check"],
        ["gradless", "serve"],
    )
    for step in (init, check):
        done = gradless(*step[1:], **EAGER)
        assert done.returncode == 0, done.stderr.decode()
    assert "resnet18" in done.stdout.decode()

    server = start_server(*serve[2:], **EAGER)
    served = {}
    expected: dict[str, str] = json.loads((trained / "answers.json").read_text())
    with httpx2.Client(base_url=server.address, timeout=30) as http:
        (card,) = http.get("/v1/models").json()["models"]
        for file in expected:
            answer = http.post("/v1/classify?top_k=1", content=(trained / file).read_bytes()).json()
            served[file] = answer["results"][0]["predictions"][0]["label"]

    assert (card["name"], card["classes"], card["input_size"]) == ("my-model", 10, 32)
    assert sum(served[file] == expected[file] for file in expected) >= 0.98 * len(expected)
    assert _accuracy(expected) > 0.7
    assert abs(_accuracy(served) - _accuracy(expected)) <= 0.02


def _accuracy(answers: dict[str, str]) -> float:
    return sum(Path(file).parent.name == answer for file, answer in answers.items()) / len(answers)
