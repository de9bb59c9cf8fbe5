"""`gradless stats`: what it prints can be pasted, and what is broken is listed."""

from __future__ import annotations

import json
import os
import tomllib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner, Result

from app.cli import app
from models.images.samples import draw

Run = Callable[..., Result]


@pytest.fixture
def gradless(monkeypatch: pytest.MonkeyPatch) -> Run:
    """Run the command in this process, because a new one would import PyTorch each time."""
    for name in [name for name in os.environ if name.startswith("GRADLESS_")]:
        monkeypatch.delenv(name)
    return lambda *arguments: CliRunner().invoke(app, arguments, catch_exceptions=False)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two pictures, one in a folder of its own."""
    made = tmp_path / "pictures"
    (made / "more").mkdir(parents=True)
    draw("clock").save(made / "clock.png")
    draw("crossword").resize((300, 100)).save(made / "more" / "crossword.png")
    return made


def _numpys(folder: Path) -> tuple[np.ndarray, np.ndarray]:
    pictures = [np.asarray(Image.open(path)).reshape(-1, 3) / 255 for path in folder.rglob("*.png")]
    pixels = np.concatenate(pictures)
    return pixels.mean(axis=0), pixels.std(axis=0)


def test_what_it_prints_is_toml_with_numpys_mean_and_deviation(gradless: Run, folder: Path) -> None:
    done = gradless("stats", str(folder), "--workers", "1")
    mean, std = _numpys(folder)

    assert (done.exit_code, done.stderr) == (0, "")
    figures = tomllib.loads(done.stdout)
    assert figures["transform"]["mean"] == pytest.approx(mean, abs=1e-6)
    assert figures["transform"]["std"] == pytest.approx(std, abs=1e-6)
    comments = [line for line in done.stdout.splitlines() if line.startswith("#")]
    assert comments[0] == "# 2 images: 2 PNG"
    assert "width 300 / 350 / 400, height 100 / 250 / 400" in comments[1]
    assert "of 190000 pixels in full size" in comments[3]


def test_as_served_measures_the_preprocessed_pixels(gradless: Run, folder: Path) -> None:
    done = gradless("stats", str(folder), "--as-served", "--model", "null", "--json", "-", "--workers", "0")

    assert done.exit_code == 0
    figures = json.loads(done.stdout)
    assert (figures["as_served"], figures["pixels"], figures["images"]) == ("null", 2 * 224 * 224, 2)
    assert (figures["width"]["most"], figures["height"]["least"]) == (400, 100)


def test_broken_files_are_listed_and_end_it_with_1_only_if_strict(gradless: Run, folder: Path, tmp_path: Path) -> None:
    (folder / "broken.jpg").write_bytes(b"no image")
    report = tmp_path / "report.json"
    lenient = gradless("stats", str(folder), "--json", str(report), "--workers", "0")
    strict = gradless("stats", str(folder), "--strict", "--workers", "0")

    assert (lenient.exit_code, strict.exit_code) == (0, 1)
    assert strict.stdout == lenient.stdout
    first, second = lenient.stderr.splitlines()
    assert first == "gradless: 1 of 3 files skipped:"
    assert f"{folder / 'broken.jpg'}: The bytes are not an image" in second
    figures = json.loads(report.read_text())
    assert [broken["path"] for broken in figures["broken"]] == [str(folder / "broken.jpg")]
    assert (figures["images"], figures["complete"]) == (2, True)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("nowhere",), "nowhere does not exist"),
        ((".",), "there is no image in ."),
        (("bad.jpg",), "no file is an image"),
        (("bad.jpg", "--model", "null"), "--model needs --as-served"),
        (("bad.jpg", "--as-served", "--model", "nul"), "did you mean null?"),
    ],
    ids=str,
)
def test_an_error_is_one_line(
    gradless: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...], words: str
) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "bad.jpg").write_bytes(b"no image")
    monkeypatch.chdir(tmp_path / "empty" if arguments == (".",) else tmp_path)
    done = gradless("stats", *arguments)

    assert (done.exit_code, done.stdout) == (2, "")
    assert words in done.stderr.splitlines()[-1]
