"""app/reports/progress.py: the progress of a job without a terminal."""

from __future__ import annotations

import re

import pytest

from app.reports import progress


def test_without_a_terminal_lines_show_rate_and_time_left(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(progress, "_LINE_EVERY_S", 0.0)
    with progress.job_progress("features", 40) as course:
        course.advance(10)
        course.advance(30)
    out, err = capsys.readouterr()
    assert out == ""
    first, last = err.splitlines()
    assert re.fullmatch(r"features: 10 of 40, [\d.]+ images/s, \d+:\d\d:\d\d left", first)
    assert last.startswith("features: 40 of 40, ")
    assert last.endswith(", 0:00:00 left")


def test_no_line_is_printed_before_its_interval(capsys: pytest.CaptureFixture[str]) -> None:
    with progress.job_progress("features", 40) as course:
        course.advance(10)
    assert capsys.readouterr() == ("", "")


def test_the_rate_excludes_an_earlier_run(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr(progress, "perf_counter", lambda: now)
    with progress.job_progress("features", 40, done=20) as course:
        now = 102.0
        course.advance(10)
        assert course.per_second == 5


def test_lines_are_printed_unchanged(capsys: pytest.CaptureFixture[str]) -> None:
    with progress.job_progress("features", 40) as course:
        course.say("gradless: [bold]" + "long " * 60)
    assert capsys.readouterr().err == "gradless: [bold]" + "long " * 60 + "\n"
