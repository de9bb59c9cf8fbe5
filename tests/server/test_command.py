"""The subcommands of `gradless` other than `serve`."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from io import BytesIO
from pathlib import Path

import pytest
from PIL import Image

Run = Callable[..., subprocess.CompletedProcess[bytes]]


@pytest.mark.parametrize(("ending", "image_format"), [("png", "PNG"), ("jpg", "JPEG")])
def test_sample_writes_the_format_of_the_suffix(gradless: Run, tmp_path: Path, ending: str, image_format: str) -> None:
    file = tmp_path / f"clock.{ending}"
    assert gradless("sample", str(file)).returncode == 0
    with Image.open(file) as picture:
        assert (picture.format, picture.size) == (image_format, (400, 400))


def test_sample_dash_writes_only_png_to_stdout(gradless: Run, clock_png: bytes) -> None:
    done = gradless("sample", "-")
    assert (done.returncode, done.stdout, done.stderr) == (0, clock_png, b"")


def test_sample_draws_the_given_picture(gradless: Run) -> None:
    clock, crossword = gradless("sample", "-"), gradless("sample", "-", "--picture", "crossword")
    assert clock.stdout != crossword.stdout
    assert Image.open(BytesIO(crossword.stdout)).size == (400, 400)


@pytest.mark.parametrize("name", ["no-such-folder/clock.png", "clock.nonsense"])
def test_sample_reports_a_write_error_in_one_line(gradless: Run, tmp_path: Path, name: str) -> None:
    path = str(tmp_path / name)
    done = gradless("sample", path)
    (line,) = done.stderr.decode().splitlines()
    assert done.returncode == 1
    assert line.startswith(f"gradless: {path} cannot be written")


def test_models_lists_the_default_first_and_the_classifiers_of_torchvision(gradless: Run) -> None:
    names = gradless("models").stdout.decode().split()
    assert names[0] == "efficientnet_lite0"
    assert "resnet50" in names
    assert not any(name.startswith("timm/") for name in names)


def test_models_lists_timm_only_with_a_pattern(gradless: Run) -> None:
    (line,) = gradless("models").stderr.decode().splitlines()
    assert "gradless models 'timm/*'" in line
    done = gradless("models", "timm/resnet18*")
    names = done.stdout.decode().split()
    assert {"timm/resnet18", "timm/resnet18.a1_in1k", "timm/resnet18d"} <= set(names)
    assert all(name.startswith("timm/resnet18") for name in names)
    assert done.stderr == b""


def test_models_reports_a_pattern_without_match_in_one_line(gradless: Run) -> None:
    done = gradless("models", "no-such*")
    assert (done.returncode, done.stdout) == (1, b"")
    assert done.stderr.decode() == "gradless: no name matches 'no-such*'\n"


def test_help_names_every_command(gradless: Run) -> None:
    done = gradless("--help")
    assert done.returncode == 0
    assert all(command in done.stdout.decode() for command in ("serve", "compare", "sample", "models"))
