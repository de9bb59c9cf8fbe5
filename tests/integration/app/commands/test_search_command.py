"""`gradless search`: from features of images to the images most like others."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
from PIL import Image, ImageOps
from typer.testing import CliRunner, Result

from app.cli import app
from models.images.samples import Sample, draw
from models.interface.extras import install_command
from models.search.index import SearchIndex

Run = Callable[..., Result]


@pytest.fixture
def gradless(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Run:
    """Run the command in this process, in a folder of the test's own."""
    for name in [name for name in os.environ if name.startswith("GRADLESS_")]:
        monkeypatch.delenv(name)
    # OpenVINO would convert the model first.
    monkeypatch.setenv("GRADLESS_BACKEND", "eager")
    monkeypatch.chdir(tmp_path)
    return lambda *arguments: CliRunner().invoke(app, arguments, catch_exceptions=False)


@pytest.fixture(scope="module")
def features_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return an index of three drawn pictures and their mirror images, and the folder of the pictures."""
    folder = tmp_path_factory.mktemp("features")
    (folder / "pictures").mkdir()
    for sample in get_args(Sample):
        draw(sample).save(folder / "pictures" / f"{sample}.png")
        ImageOps.mirror(draw(sample)).save(folder / "pictures" / f"{sample}-mirrored.png")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GRADLESS_BACKEND", "eager")
        patch.chdir(folder)
        done = CliRunner().invoke(app, ["features", "pictures", "--workers", "0", "-o", "features.parquet"])
    assert done.exit_code == 0, done.output
    return folder / "features.parquet"


@pytest.fixture
def features(features_file: Path, tmp_path: Path, gradless: Run) -> str:
    """The features and the pictures, in the test's folder, which is the current one; and an index of them."""
    shutil.copytree(features_file.parent, tmp_path, dirs_exist_ok=True)
    built = gradless("search", "build", "features.parquet", "-o", "index")
    assert built.exit_code == 0
    return built.stdout


def test_an_index_of_a_folders_features_finds_the_pictures_most_alike(gradless: Run, features: str) -> None:
    queried = gradless("search", "query", "index", "pictures/clock.png", "pictures/crossword.png", "-k", "2")

    assert "index: 6 vectors of efficientnet_lite0 (" in features
    assert "a query compares all vectors" in features
    assert queried.exit_code == 0
    lines = queried.stdout.splitlines()
    assert lines[:2] == ["pictures/clock.png", "  1.0000  pictures/clock.png"]
    assert lines[2].endswith("  pictures/clock-mirrored.png")
    assert lines[3:5] == ["pictures/crossword.png", "  1.0000  pictures/crossword.png"]
    assert lines[5].endswith("  pictures/crossword-mirrored.png")


@pytest.mark.usefixtures("features")
def test_the_json_answer_has_rows_and_failed_files(gradless: Run) -> None:
    Path("pictures/broken.png").write_bytes(b"no image")
    queried = gradless(
        "search", "query", "index", "pictures/broken.png", "pictures/clock.png", "-k", "1", "--json", "-"
    )

    assert queried.exit_code == 1
    broken, clock = json.loads(queried.stdout)
    assert broken["path"] == "pictures/broken.png"
    assert broken["error"].startswith("The bytes are not an image")
    assert clock["neighbours"] == [
        {"row": 1, "path": "pictures/clock.png", "similarity": pytest.approx(1, abs=1e-6), "thumbnail": False}
    ]


@pytest.mark.usefixtures("features")
def test_thumbnails_are_small_pictures_of_the_files_that_are_there(gradless: Run) -> None:
    Path("pictures/clock.png").unlink()
    Path("pictures/crossword.png").write_bytes(b"no image")
    built = gradless("search", "build", "features.parquet", "-o", "index", "--thumbnails")
    index = SearchIndex.open(Path("index"))

    assert "6 vectors" in built.stdout
    assert "4 with a thumbnail" in built.stdout
    rows = {neighbour.path: neighbour.row for neighbour in index.search(np.ones((1, 1280), np.float32), 6)[0]}
    assert index.thumbnail(rows["pictures/clock.png"]) is None
    assert index.thumbnail(rows["pictures/crossword.png"]) is None
    with Image.open(BytesIO(index.thumbnail(rows["pictures/traffic-light.png"]) or b"")) as picture:
        assert (picture.format, picture.size) == ("JPEG", (192, 192))
    assert [index.thumbnail(row) for row in (-1, 6)] == [None, None]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("build", "features.parquet", "-o", "pictures"), "pictures exists and is no search index"),
        (("build", "missing.parquet", "-o", "index"), "missing.parquet is no readable features file"),
        (("build", "features.parquet", "-o", "no/where/index"), "no/where/index cannot be written"),
        (("query", "nowhere", "pictures"), "build one with `gradless search build`"),
        (("query", "index", "nothing.png"), "nothing.png does not exist"),
        (("query", "index", "pictures", "--model", "shufflenet_v2_x0_5:random"), "cannot be compared with those of"),
    ],
    ids=str,
)
@pytest.mark.usefixtures("features")
def test_an_error_is_one_line(gradless: Run, arguments: tuple[str, ...], words: str) -> None:
    done = gradless("search", *arguments)

    assert (done.exit_code, done.stdout) == (2, "")
    (line,) = done.stderr.splitlines()
    assert line.startswith("gradless: ")
    assert words in line


def test_without_its_extra_the_error_names_the_command_that_installs_it(
    gradless: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("app.commands.search.installed", lambda *_modules: False)

    done = gradless("search", "query", "index", "a.png")

    assert done.exit_code == 2
    assert done.stderr == f"gradless: search needs usearch and pyarrow: {install_command('search')}\n"
