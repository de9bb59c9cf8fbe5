"""`gradless compare`: output, files, errors and exit status."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from app.api.schemas import GradModes
from gradless.records import ARMS

Run = Callable[..., subprocess.CompletedProcess[bytes]]

QUICK = ("--batch-size", "2", "--iterations", "1")
EAGER = {"GRADLESS_BACKEND": "eager"}

# The command, with a backend that records a graph and keeps it, behind an output that does not show it.
_LEAKY = """
import torch
from app.cli import main
from models.backends.pytorch import EagerBackend
from models.networks.network import FeaturesAndLogits

# Without the mode that the backend enters in its own threads.
forward = EagerBackend._forward.__wrapped__
kept = []

def leaky(self, cancel_token, pixels):
    with torch.inference_mode(False), torch.enable_grad():
        kept[:] = forward(self, cancel_token, pixels.clone())
        return FeaturesAndLogits(*(part.detach() for part in kept))

EagerBackend._forward = leaky
main()
"""


def one_line(done: subprocess.CompletedProcess[bytes]) -> str:
    """Return the only line of a failed command's stderr."""
    (line,) = done.stderr.decode().splitlines()
    assert (done.returncode, done.stdout) == (2, b"")
    assert line.startswith("gradless: ")
    return line


@pytest.fixture
def compare(gradless: Run, small_model: Path) -> Run:
    """Run one round of `gradless compare` over two images."""
    return lambda *options, **settings: gradless("compare", str(small_model), *QUICK, *options, **EAGER | settings)


def test_compare_prints_times_and_arms_and_writes_both_reports(compare: Run, tmp_path: Path) -> None:
    json_file, html_file = tmp_path / "report.json", tmp_path / "report.html"
    done = compare("--sweep", "1", "--json", str(json_file), "--html", str(html_file))
    assert (done.returncode, done.stderr) == (0, b"")
    lines = done.stdout.decode().splitlines()
    assert lines[0].startswith("With gradient calculation: ")
    assert lines[1].startswith("Without: ")
    assert lines[2] == "Difference: 1 round does not show a difference"
    assert all(any(line.split()[:1] == [arm] for line in lines) for arm in ARMS)
    report = GradModes.model_validate_json(json_file.read_text())
    assert (report.model, report.batch_size, report.iterations) == ("small", 2, 1)
    assert [arm.arm for arm in report.arms] == list(ARMS)
    assert [point.batch_size for point in report.sweep] == [1]
    html = html_file.read_text()
    assert html.startswith("<!doctype html>")
    assert all(sentence.split(":")[0] in html for sentence in report.sentences[:2])


def test_dash_is_stdout_for_json_alone(compare: Run) -> None:
    done = compare("--arms", "grad,served", "--json", "-")
    assert done.returncode == 0
    assert [arm["arm"] for arm in json.loads(done.stdout)["arms"]] == ["grad", "served"]
    assert b"kept nothing" in done.stderr


def test_compare_runs_on_a_given_image(compare: Run, tmp_path: Path, clock_png: bytes) -> None:
    picture = tmp_path / "clock.png"
    picture.write_bytes(clock_png)
    done = compare("--arms", "grad", "--image", str(picture), "--json", "-")
    assert json.loads(done.stdout)["input"] == "the uploaded image"


def test_fail_on_retained_passes_if_the_served_model_keeps_nothing(compare: Run) -> None:
    done = compare("--arms", "served", "--fail-on-retained")
    assert (done.returncode, done.stderr) == (0, b"")


def test_fail_on_retained_fails_if_the_served_model_keeps_a_byte(compare: Run, tmp_path: Path) -> None:
    script = tmp_path / "leaky.py"
    script.write_text(_LEAKY)
    done = compare("--arms", "served", "--fail-on-retained", script=script)
    assert done.returncode == 1
    # Before it PyTorch's profiler may warn of memory that was allocated earlier: the last graph kept.
    *_, line = done.stderr.decode().splitlines()
    assert line.startswith("gradless: the served model keeps ")
    assert "0 bytes" not in line


def test_fail_on_retained_says_that_openvino_could_not_be_observed(compare: Run) -> None:
    done = compare("--arms", "served", "--fail-on-retained", GRADLESS_BACKEND="openvino")
    assert done.returncode == 0
    (line,) = done.stderr.decode().splitlines()
    assert line == "gradless: what the served model keeps could not be observed: its forward runs outside PyTorch"
    assert b"kept nothing" not in done.stdout


def test_a_failure_that_nothing_expects_exits_with_2(compare: Run, tmp_path: Path) -> None:
    script = tmp_path / "failing.py"
    script.write_text("""
import gradless.comparison
from app.cli import main

def fail(*_):
    raise ZeroDivisionError("odd")

gradless.comparison.sentences = fail
main()
""")
    done = compare("--arms", "grad", script=script)
    assert (done.returncode, done.stderr) == (2, b"gradless: ZeroDivisionError: odd\n")


def test_a_folder_is_timed_end_to_end_and_forward_only(
    gradless: Run, small_model: Path, tmp_path: Path, clock_png: bytes
) -> None:
    for name in ("a.png", "b.png", "c.png"):
        (tmp_path / name).write_bytes(clock_png)
    (tmp_path / "d.png").write_bytes(b"no image")
    done = gradless(
        "compare", str(small_model), *QUICK, "--folder", str(tmp_path), "--json", str(tmp_path / "times.json")
    )
    assert (done.returncode, done.stderr) == (0, b"")
    lines = done.stdout.decode().splitlines()
    assert [line.split(":")[0] for line in lines[:4]] == [
        "With gradient calculation",
        "Without",
        "Difference",
        "Forwards alone",
    ]
    assert "3 images in batches of 2" in lines[4]
    assert lines[4].endswith("; not read: 1")
    report = json.loads((tmp_path / "times.json").read_text())
    assert min(report["end_to_end"]["without"], report["forward"]["without"]) > 0
    assert report["forward"]["verdict"] == "no difference shown"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("resnet5",), "no model is named 'resnet5'"),
        (("--arms", "grad,nograd"), "--arms: there is no 'nograd'; there is grad, no_grad"),
        (("--arms", ","), "--arms: at least one"),
        (("--arms", "grad", "--fail-on-retained"), "needs the arm served"),
        (("--sweep", "1,two"), "--sweep: 'two' is no batch size"),
        (("--sweep", "0"), "--sweep: '0' is no batch size"),
        (("--image", "no/such.png"), "no/such.png cannot be read: No such file or directory"),
        (("--folder", "no/such"), "no/such does not exist"),
        (("--folder", "docs", "--fail-on-retained"), "--folder goes with neither --image"),
    ],
)
def test_invalid_options_are_reported_in_one_line(gradless: Run, arguments: tuple[str, ...], message: str) -> None:
    assert message in one_line(gradless("compare", *arguments, **EAGER))


def test_a_wrong_setting_is_reported_as_by_serve(gradless: Run) -> None:
    assert "GRADLESS_BACKEND=fast" in one_line(gradless("compare", GRADLESS_BACKEND="fast"))


def test_a_file_that_is_not_an_image_is_reported(compare: Run, tmp_path: Path) -> None:
    file = tmp_path / "notes.txt"
    file.write_text("no picture")
    assert "not an image of a format read here" in one_line(compare("--image", str(file)))


def test_a_comparison_beyond_memory_or_time_is_refused(gradless: Run) -> None:
    # 1024 images keep 80 GB, and take minutes a forward where there is as much.
    line = one_line(gradless("compare", "--batch-size", "1024", "--arms", "grad", **EAGER))
    assert "A comparison at batch size 1024 would " in line
    assert "are allowed" in line


def test_the_terminal_report_is_shown_if_a_file_cannot_be_written(compare: Run, tmp_path: Path) -> None:
    done = compare("--arms", "grad", "--html", str(tmp_path / "no" / "folder.html"))
    assert done.returncode == 2
    assert b"cannot be written: No such file or directory" in done.stderr
    assert b"kept" in done.stdout


@pytest.mark.parametrize("form", ["table", "json"])
def test_a_closed_stdout_changes_neither_reports_nor_exit_status(
    server_environment: Callable[..., dict[str, str]],
    gradless_path: Path,
    warm_command: Any,
    small_model: Path,
    tmp_path: Path,
    form: str,
) -> None:
    report, message = tmp_path / "report.html", tmp_path / "message"
    command = [gradless_path, "compare", small_model, *QUICK, "--arms", "grad,served", "--fail-on-retained"]
    command += ["--html", report]
    command += ["--json", "-"] if form == "json" else []
    read, write = os.pipe()
    os.close(read)
    with (
        os.fdopen(write, "wb") as left,
        message.open("wb") as stderr,
        warm_command.start(command, server_environment(**EAGER), left, stderr) as leaving,
    ):
        assert leaving.wait(90) == 0
    assert "Error" not in message.read_text()
    assert "</html>" in report.read_text()


def test_help_explains_the_exit_status(gradless: Run) -> None:
    text = " ".join(gradless("compare", "--help").stdout.decode().split())
    assert "Exit status" in text
    assert "--fail-on-retained" in text
