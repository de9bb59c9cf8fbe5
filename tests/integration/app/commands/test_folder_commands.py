"""app/commands/folders.py: what a job skips and does again is reported; only Parquet needs pyarrow."""

from __future__ import annotations

import csv
import json
import sys
from pathlib import Path

import numpy as np
import pytest
import typer
from PIL import Image

from app.commands import folders
from models.offline import job


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Six pictures, and entries that are not read. The model has no forward: the tests are about the rest."""
    found = tmp_path / "pictures"
    (found / ".thumbs").mkdir(parents=True)
    for number in range(6):
        Image.new("RGB", (50, 40), (40 * number, 90, 90)).save(found / f"{number}.png")
    (found / "notes.txt").touch()
    (found / "gone.png").symlink_to("no-such.png")
    monkeypatch.setenv("GRADLESS_MODELS", "null")
    return found


def test_a_job_reports_what_it_does_not_read(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "out.csv"
    with pytest.raises(typer.Exit) as ended:
        folders.classify([str(folder)], str(output), workers=0, strict=True)

    first, second, last = capsys.readouterr().err.splitlines()
    assert first == ("gradless: not read: 1 hidden folder (.thumbs), 1 dangling link (gone.png), 1 other file (1 .txt)")
    assert second == f"gradless: {folder}/gone.png: The file cannot be read: No such file or directory."
    assert "1 files without an answer" in last
    assert ended.value.exit_code == 1
    assert json.loads((tmp_path / "out.csv.errors.jsonl").read_text())["path"] == f"{folder}/gone.png"


def test_a_job_reports_changed_files(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(_work: object) -> int:
        raise OSError(28, "No space left on device")

    output = tmp_path / "out.npy"
    with monkeypatch.context() as broken:
        broken.setattr(job.FolderJob, "finish", interrupted)
        with pytest.raises(typer.Exit):
            folders.features([str(folder)], str(output), workers=0)
    Image.new("RGB", (50, 40)).save(folder / "3.png", compress_level=0)
    capsys.readouterr()

    folders.features([str(folder)], str(output), workers=0, resume=True)
    lines = capsys.readouterr().err.splitlines()
    assert "gradless: 1 file changed since the last run, and will be done again" in lines
    assert len(np.load(output)) == 6


def test_all_formats_except_parquet_are_written_without_pyarrow(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    for suffix in (".csv", ".jsonl"):
        folders.classify([str(folder)], str(tmp_path / f"out{suffix}"), top_k=2, workers=0)
    folders.features([str(folder)], str(tmp_path / "out.npy"), workers=0)

    with (tmp_path / "out.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    lines = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert list(rows[0]) == list(lines[0])
    assert (
        [row["path"] for row in rows]
        == [line["path"] for line in lines]
        == [str(folder / f"{number}.png") for number in range(6)]
    )
    assert np.load(tmp_path / "out.npy").dtype == np.float32

    capsys.readouterr()
    with pytest.raises(typer.Exit):
        folders.classify([str(folder)], str(tmp_path / "out.parquet"))
    [line] = capsys.readouterr().err.splitlines()
    assert "Parquet needs pyarrow, and .csv or .jsonl does not: " in line
