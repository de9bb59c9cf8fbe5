"""`gradless serve`: models and options win over their variables, and are checked as these are."""

from __future__ import annotations

import re
from importlib.metadata import version
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from app.cli import app
from app.settings import Settings

SHOWN = ("host", "port", "device", "backend", "precision", "queue_capacity", "log_level")


@pytest.fixture
def served(monkeypatch: pytest.MonkeyPatch) -> list[Settings]:
    """The settings of each server that would have been started."""
    started: list[Settings] = []
    monkeypatch.setattr("app.server.server.serve", started.append)
    # In one process, because to find out whether there is a GPU takes seconds.
    monkeypatch.setenv("GRADLESS_HTTP_WORKERS", "0")
    monkeypatch.setattr("app.commands.serve.configure_logging", lambda *_: None)
    return started


def run(*arguments: str) -> Result:
    return CliRunner().invoke(app, arguments, env={"COLUMNS": "200"})


def test_without_options_the_variables_apply(served: list[Settings], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GRADLESS_PORT", "9000")

    assert run("serve").exit_code == 0
    assert (served[0].port, served[0].models) == (9000, ("efficientnet_lite0",))


def test_models_and_options_win_over_their_variables(served: list[Settings], monkeypatch: pytest.MonkeyPatch) -> None:
    for name, text in {"MODELS": "a", "HOST": "nowhere", "PORT": "no number", "PRECISION": "bf16"}.items():
        monkeypatch.setenv(f"GRADLESS_{name}", text)

    done = run("serve", "./my-model", "b,c:random", "--host", "0.0.0.0", "--port", "0", "--models-folder", "served")  # noqa: S104

    assert done.exit_code == 0, done.output
    [settings] = served
    assert settings.models == ("./my-model", "b", "c:random")
    assert (settings.host, settings.port, settings.models_folder) == ("0.0.0.0", 0, Path("served"))  # noqa: S104
    assert settings.precision == "bf16"


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (("--port", "x"), "gradless: --port=x: input should be a valid integer"),
        (("--precision", "fp8"), "gradless: --precision=fp8: input should be 'fp32', 'bf16', 'fp16' or 'int8'"),
        (("--http-workers", "65"), "gradless: --http-workers=65: input should be less than or equal to 64"),
        (("a", "b", "a"), "gradless: MODEL=a,b,a: each name may appear once"),
        (("--host", ""), "gradless: --host is empty; give a value or leave it out"),
    ],
)
def test_a_wrong_option_is_one_line_and_status_2(served: list[Settings], arguments: tuple[str, ...], line: str) -> None:
    done = run("serve", *arguments)

    assert (done.exit_code, served) == (2, [])
    (shown,) = done.stderr.splitlines()
    assert shown.startswith(line)


def test_an_empty_file_of_keys_never_opens_the_service(served: list[Settings], monkeypatch: pytest.MonkeyPatch) -> None:
    assert run("serve", "--api-keys-file", "").exit_code == 2
    monkeypatch.setenv("GRADLESS_API_KEYS_FILE", "")
    assert run("serve").exit_code == 2
    assert served == []


def test_a_file_of_keys_wins_over_an_empty_variable(
    served: list[Settings], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("GRADLESS_API_KEYS_FILE", "")
    (tmp_path / "keys.txt").write_text("0123456789abcdef\n")

    assert run("serve", "--api-keys-file", str(tmp_path / "keys.txt")).exit_code == 0
    assert served[0].known_keys()


def test_the_help_shows_options_with_their_defaults() -> None:
    shown = " ".join(re.sub(r"[│╭╮╰╯─]", " ", run("serve", "--help").output).split())

    assert "[MODEL]..." in shown
    assert "Without any: efficientnet_lite0" in shown
    for name in SHOWN:
        field = Settings.model_fields[name]
        assert f"--{name.replace('_', '-')}" in shown
        assert f"{field.description}; default: {field.default}" in shown


def test_the_version_is_that_of_the_package() -> None:
    done = run("--version")

    assert (done.exit_code, done.output) == (0, f"gradless {version('gradless')}\n")
