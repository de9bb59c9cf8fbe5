"""`gradless evaluate` as a process, on drawn pictures that the default model names rightly."""

from __future__ import annotations

import json
import re
import subprocess
from base64 import b64decode
from collections.abc import Callable
from io import BytesIO
from pathlib import Path

import pytest
from PIL import Image

from models.images.samples import draw

Run = Callable[..., subprocess.CompletedProcess[bytes]]

# One thread: on a busy machine those of OpenMP wait for one another longer than they work.
EAGER = {"GRADLESS_BACKEND": "eager", "OMP_NUM_THREADS": "1"}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A clock, a crossword, and a clock labelled as a traffic light."""
    found = tmp_path / "set"
    for place in ("analog clock/<i>.png", "crossword_puzzle/b.png", "920/c.png"):
        (found / place).parent.mkdir(parents=True)
        draw("crossword" if "crossword" in place else "clock").save(found / place)
    return found


def test_evaluate_prints_and_writes_figures_and_the_page_shows_the_mistake(
    gradless: Run, folder: Path, tmp_path: Path
) -> None:
    (folder / "920" / "broken.png").write_text("no picture")
    page, figures = tmp_path / "page.html", tmp_path / "figures.json"
    done = gradless("evaluate", str(folder), "--json", str(figures), "--html", str(page), "--strict", **EAGER)

    assert done.returncode == 1
    assert "broken.png: The bytes are not an image" in done.stderr.decode()
    assert "Top-1: 66.7 %" in done.stdout.decode().splitlines()
    found = json.loads(figures.read_text())
    assert (found["images"], found["without_answer"]) == (3, 1)
    assert found["top1"] == pytest.approx(2 / 3)
    assert [(c["truth"], c["taken_for"], c["images"], c["of"]) for c in found["confusions"]] == [
        ("traffic light", "analog clock", 1, 1)
    ]
    html = page.read_text()
    [picture] = re.findall(r'<img src="data:image/jpeg;base64,([^"]+)" alt="c.png">', html)
    assert max(Image.open(BytesIO(b64decode(picture))).size) == 360
    assert "http://" not in html
    assert "https://" not in html


def test_a_list_of_labels_replaces_folders(gradless: Run, folder: Path, tmp_path: Path) -> None:
    labels = tmp_path / "labels.csv"
    labels.write_text("path,label\nanalog clock/<i>.png,409\ncrossword_puzzle/b.png,crossword puzzle\n")
    done = gradless("evaluate", str(folder), "--labels", str(labels), "--json", "-", **EAGER)
    assert done.returncode == 0
    assert json.loads(done.stdout)["top1"] == 1
    assert b"Top-1: 100.0 %" in done.stderr


def test_an_unknown_label_is_an_error_unless_ignored(gradless: Run, folder: Path) -> None:
    (folder / "920").rename(folder / "trafic lite")
    refused = gradless("evaluate", str(folder), "--model", "null")
    assert (refused.returncode, refused.stdout) == (2, b"")
    [line] = refused.stderr.decode().splitlines()
    assert line.startswith("gradless: no label or index of a class of the model: 'trafic lite', did you mean 'traf")

    done = gradless("evaluate", str(folder), "--model", "null", "--ignore-unknown", "--json", "-")
    assert done.returncode == 0
    assert json.loads(done.stdout)["images"] == 2
    assert b"skipped labels that are no class of the model: 'trafic lite'" in done.stderr
