"""`gradless evaluate` with incomplete results."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Generator
from pathlib import Path

import pytest
from PIL import Image
from typer.testing import CliRunner, Result

from app.cli import app
from models.offline.evaluation import EvaluationJob
from models.offline.running import Step

Run = Callable[..., Result]


@pytest.fixture
def evaluated(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Run:
    """Evaluate a folder of two classes, in batches of one, by a model whose forward takes no time."""
    for name in [name for name in os.environ if name.startswith("GRADLESS_")]:
        monkeypatch.delenv(name)
    command = ("evaluate", str(tmp_path / "set"), "--model", "null", "--batch-size", "1")
    return lambda *more: CliRunner().invoke(app, [*command, *more], catch_exceptions=False)


@pytest.fixture
def files(tmp_path: Path) -> list[Path]:
    found = [tmp_path / "set" / name for name in ("crossword puzzle/a.png", "traffic light/b.png")]
    for file in found:
        file.parent.mkdir(parents=True)
        Image.new("RGB", (40, 30), (200, 100, 50)).save(file)
    return found


def test_without_a_picture_there_is_no_share_of_right_answers(
    evaluated: Run, files: list[Path], tmp_path: Path
) -> None:
    for file in files:
        file.write_text("no picture")
    report = tmp_path / "report.json"
    done = evaluated("--json", str(report))

    assert (done.exit_code, done.stdout, report.exists()) == (2, "", False)
    assert done.stderr.splitlines()[-1] == "gradless: no file is an image that could be classified"


@pytest.mark.usefixtures("files")
def test_ctrl_c_prints_the_figures_so_far(evaluated: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    steps = EvaluationJob.steps

    def interrupted(job: EvaluationJob) -> Generator[Step, None, None]:
        yield next(steps(job))
        raise KeyboardInterrupt

    monkeypatch.setattr(EvaluationJob, "steps", interrupted)
    report, page = tmp_path / "report.json", tmp_path / "page.html"
    done = evaluated("--json", str(report), "--html", str(page))

    assert done.exit_code == 130
    assert "Top-1: " in done.stdout
    assert "null, 1 images" in done.stdout
    report_json = json.loads(report.read_text())
    assert (report_json["images"], report_json["complete"], page.exists()) == (1, False, False)
    assert done.stderr.splitlines()[-1] == "gradless: interrupted: these are the results of the first 1 images"
