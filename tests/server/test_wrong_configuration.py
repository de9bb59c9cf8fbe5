"""A server that cannot start says why in one line, and what to do, and exits with a status that says so too."""

from __future__ import annotations

import socket
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

Run = Callable[..., subprocess.CompletedProcess[bytes]]


def complaint(done: subprocess.CompletedProcess[bytes]) -> str:
    """The one line that is not the log of an ordinary start."""
    assert done.returncode not in {0, None}
    assert done.stdout == b""
    printed = done.stderr.decode()
    assert "Traceback" not in printed
    ordinary = ('"level": "info"', "Application startup failed", "Downloading: ")
    lines = [line for line in printed.splitlines() if not any(word in line for word in ordinary)]
    assert len(lines) == 1, printed
    return lines[0]


@pytest.mark.parametrize(
    ("setting", "value", "expected"),
    [
        ("GRADLESS_PORT", "x", ["GRADLESS_PORT=x", "integer"]),
        ("GRADLESS_PROT", "1", ["GRADLESS_PROT", "did you mean GRADLESS_PORT?"]),
        ("GRADLESS_QUEUE_CAPACITY", "1", ["GRADLESS_QUEUE_CAPACITY (1)", "GRADLESS_MAX_IMAGES_PER_REQUEST (64)"]),
        ("GRADLESS_MODELS", "resnet51", ["'resnet51'", "did you mean", "resnet50"]),
        ("GRADLESS_PRECISION", "int8", ["GRADLESS_PRECISION=int8 needs GRADLESS_CALIBRATION_FOLDER"]),
        ("GRADLESS_DEVICE", "abacus", ["'abacus'", "auto, cpu, cuda"]),
    ],
)
def test_a_wrong_setting_is_named_with_what_would_be_right(
    gradless: Run, setting: str, value: str, expected: list[str]
) -> None:
    line = complaint(gradless("serve", **{setting: value}))
    assert all(words in line for words in expected), line


def test_a_cuda_device_that_is_not_there_is_named(gradless: Run) -> None:
    # With every GPU hidden, so that it holds on machines that have one.
    line = complaint(gradless("serve", GRADLESS_DEVICE="cuda", CUDA_VISIBLE_DEVICES=""))
    assert "'cuda'" in line


def test_half_precision_on_the_cpu_is_refused_with_what_works_instead(gradless: Run) -> None:
    line = complaint(gradless("serve", GRADLESS_DEVICE="cpu", GRADLESS_PRECISION="fp16"))
    assert "bf16 or fp32" in line


def test_a_port_in_use_is_named(gradless: Run) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        line = complaint(gradless("serve", GRADLESS_PORT=port))
    assert port in line
    assert "in use" in line


def test_weights_that_cannot_be_downloaded_are_asked_for_by_file_name(gradless: Run, tmp_path: Path) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        # Bound and never listening: whoever connects is refused, and nobody else gets the port meanwhile.
        proxy = f"http://127.0.0.1:{closed.getsockname()[1]}"
        line = complaint(
            gradless(
                "serve",
                GRADLESS_MODELS="resnet50",
                TORCH_HOME=str(tmp_path),
                https_proxy=proxy,
                HTTPS_PROXY=proxy,
                no_proxy="",
                NO_PROXY="",
            )
        )
    assert str(tmp_path / "hub" / "checkpoints" / "resnet50-") in line
    assert "resnet50:random" in line
