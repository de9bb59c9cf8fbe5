"""app/commands/conventions.py: a failing command ends with one line and a status."""

from __future__ import annotations

import pytest
import typer

from app.commands.conventions import FAILED, INTERRUPTED, UNREADABLE, end, failures_reported
from models.interface.errors import JobError


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (JobError("there is\nno image"), "there is no image"),
        (OSError(28, "No space left on device", "out.npy"), "out.npy cannot be written: No space left on device"),
        (PermissionError(13, "Permission denied"), "out.csv cannot be written: Permission denied"),
        (RuntimeError("mat1 and mat2\n  cannot be multiplied"), "RuntimeError: mat1 and mat2 cannot be multiplied"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_any_error_is_one_line_and_status_2(error: Exception, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(typer.Exit) as ended, failures_reported("out.csv"):
        raise error
    assert ended.value.exit_code == FAILED
    assert capsys.readouterr().err == f"gradless: {message}\n"


def test_the_log_level_debug_adds_the_traceback(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("GRADLESS_LOG_LEVEL", "debug")
    with pytest.raises(typer.Exit), failures_reported("out.csv"):
        raise RuntimeError("mat1 and mat2")
    output = capsys.readouterr().err
    assert "test_conventions.py" in output
    assert output.endswith("gradless: RuntimeError: mat1 and mat2\n")


def test_an_exit_is_not_reported_again(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(typer.Exit) as ended, failures_reported("out.csv"):
        end("a file is broken", UNREADABLE)
    assert ended.value.exit_code == UNREADABLE
    assert capsys.readouterr().err == "gradless: a file is broken\n"


def test_an_interrupted_command_ends_with_130_without_a_line(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(typer.Exit) as ended, failures_reported("out.csv"):
        raise KeyboardInterrupt
    assert ended.value.exit_code == INTERRUPTED
    assert capsys.readouterr().err == ""
