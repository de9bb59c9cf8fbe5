"""The installed `gradless optimize`, and a real server of the folder that it writes."""

from __future__ import annotations

import json
import subprocess
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from models.images.samples import draw, encode

Run = Callable[..., "subprocess.CompletedProcess[bytes]"]


CODE = """
from torch import nn


def build(num_classes=10):
    return nn.Sequential(
        nn.Conv2d(3, 32, 3, stride=2), nn.BatchNorm2d(32), nn.ReLU(), nn.Conv2d(32, 64, 3, stride=2),
        nn.BatchNorm2d(64), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, num_classes),
    )
"""
TOML = """
architecture = "net:build"
weights = "random"
[transform]
resize = 36
crop = 32
interpolation = "bilinear"
mean = [0.5, 0.5, 0.5]
std = [0.5, 0.5, 0.5]
"""


@pytest.fixture
def source(tmp_path: Path) -> Path:
    folder = tmp_path / "source"
    folder.mkdir()
    (folder / "net.py").write_text(CODE)
    (folder / "model.toml").write_text(TOML)
    return folder


@pytest.fixture
def images(tmp_path: Path) -> Path:
    folder = tmp_path / "images"
    folder.mkdir()
    for sample in ("clock", "traffic-light", "crossword"):
        (folder / f"{sample}.png").write_bytes(encode(draw(sample), "PNG"))
    return folder


def test_an_optimized_model_is_served_with_the_fingerprint_of_its_report(
    gradless: Run, start_server: Callable[..., Any], source: Path, images: Path, tmp_path: Path
) -> None:
    settings = {"GRADLESS_BACKEND": "eager", "GRADLESS_CACHE_FOLDER": str(tmp_path / "cache")}
    made = tmp_path / "tiny-bf16"
    arguments = ["optimize", str(source), "--method", "bf16", "--images", str(images), "-o", str(made), "--rounds", "2"]
    done = gradless(*arguments, "--workers", "0", **settings)

    assert done.returncode == 0, done.stderr
    assert b"same top class" in done.stdout
    report = json.loads((made / "report.json").read_text())
    assert report["command"].startswith(f"gradless optimize {source} --method bf16")
    server = start_server(GRADLESS_MODELS=str(made), **settings)
    picture = (images / "clock.png").read_bytes()
    request = urllib.request.Request(f"{server.address}/v1/classify", picture)  # noqa: S310 - our own server
    with urllib.request.urlopen(request, timeout=30) as answer:  # noqa: S310 - as above
        found = json.load(answer)
    assert found["model"] == made.name
    assert found["fingerprint"] == report["after"]["fingerprint"] != report["before"]["fingerprint"]


def test_agreement_below_the_minimum_exits_with_1_and_no_folder(
    gradless: Run, source: Path, images: Path, tmp_path: Path
) -> None:
    made = tmp_path / "made"
    arguments = [
        "optimize",
        str(source),
        "--method",
        "prune",
        "--images",
        str(images),
        "-o",
        str(made),
        "--ratio",
        "0.8",
    ]
    done = gradless(*arguments, "--rounds", "2", "--workers", "0", "--min-agreement", "1", GRADLESS_BACKEND="eager")

    report_shown = b"same top class" in done.stdout
    assert (done.returncode, report_shown, made.exists()) == (1, True, False), done.stderr
    assert b"is not written" in done.stderr


def test_an_invalid_command_is_one_line_and_exit_status_2(
    gradless: Run, source: Path, images: Path, tmp_path: Path
) -> None:
    arguments = ["optimize", str(source), "--images", str(images), "-o", str(tmp_path / "made")]
    for options, message in [
        (["--method", "bf16", "--ratio", "0.5"], b"gradless: --ratio needs --method prune\n"),
        (["--method", "int8"], b"int8 is for the openvino backend"),
    ]:
        done = gradless(*arguments, *options, GRADLESS_BACKEND="eager")
        assert done.returncode == 2
        assert message in done.stderr
        assert done.stderr.count(b"\n") == 1
