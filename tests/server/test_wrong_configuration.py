"""A server that cannot start prints the reason and a remedy in one line, and exits with a documented status."""

from __future__ import annotations

import os
import socket
import subprocess
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

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
def test_a_wrong_setting_is_named_with_its_valid_values(
    gradless: Run, setting: str, value: str, expected: list[str]
) -> None:
    line = complaint(gradless("serve", **{setting: value}))
    assert all(words in line for words in expected), line


def test_a_missing_cuda_device_is_named(gradless: Run) -> None:
    # With every GPU hidden, so that it holds on machines that have one.
    line = complaint(gradless("serve", GRADLESS_DEVICE="cuda", CUDA_VISIBLE_DEVICES=""))
    assert "'cuda'" in line


def test_half_precision_on_the_cpu_is_refused_with_the_alternatives(gradless: Run) -> None:
    line = complaint(gradless("serve", GRADLESS_DEVICE="cpu", GRADLESS_PRECISION="fp16"))
    assert "bf16 or fp32" in line


def test_a_port_in_use_is_named(gradless: Run) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        line = complaint(gradless("serve", GRADLESS_PORT=port))
    assert "cannot start: cannot listen on GRADLESS_HOST=127.0.0.1" in line
    assert port in line
    assert "in use" in line


@pytest.mark.parametrize("workers", ["0", "2"])
@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("GRADLESS_MODELS", "resnet51"),
        ("GRADLESS_HOST", "not.there.invalid"),
        ("GRADLESS_CACHE_FOLDER", "~no-user/x"),
    ],
)
def test_a_problem_found_during_the_start_is_one_log_line_and_status_3(
    gradless: Run, workers: str, setting: str, value: str
) -> None:
    done = gradless("serve", GRADLESS_HTTP_WORKERS=workers, **{setting: value})
    assert "cannot start: " in complaint(done)
    assert done.returncode == 3


@pytest.fixture
def as_another_user(gradless: Run) -> Callable[..., subprocess.CompletedProcess[bytes]]:
    """Run `gradless serve` as a user without an entry in /etc/passwd, so that file permissions apply even to root."""
    if subprocess.run(["unshare", "--user", "true"], capture_output=True, check=False).returncode:
        pytest.skip("namespaces cannot be made here")
    return partial(gradless, "serve", script=Path(__file__).with_name("unmapped_user.py"))


def test_a_user_without_a_home_folder_gets_an_error_that_names_it(
    as_another_user: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("HOME")
    line = complaint(as_another_user())
    assert "cannot start: ~/.cache/gradless cannot be expanded" in line
    assert "set HOME" in line


def test_a_file_of_keys_that_the_user_may_not_read_is_named(as_another_user: Run, tmp_path: Path) -> None:
    keys = tmp_path / "keys"
    keys.touch(mode=0)
    done = as_another_user(GRADLESS_API_KEYS_FILE=str(keys))
    assert complaint(done) == f"gradless: GRADLESS_API_KEYS_FILE: {keys} is not readable by this user"
    assert done.returncode == 2


def test_weights_of_a_model_folder_that_the_user_may_not_read_are_named(as_another_user: Run, tmp_path: Path) -> None:
    (tmp_path / "model.toml").write_text('architecture = "resnet18"\nweights = "weights.pt"\n')
    (tmp_path / "weights.pt").touch(mode=0)
    line = complaint(as_another_user(GRADLESS_MODELS=str(tmp_path), HOME=str(tmp_path)))
    assert "weights.pt: is not readable by this user" in line


def test_published_weights_that_the_user_may_not_read_are_named(as_another_user: Run, tmp_path: Path) -> None:
    checkpoints = tmp_path / "hub" / "checkpoints"
    checkpoints.mkdir(parents=True)
    file = checkpoints / "resnet18-f37072fd.pth"
    file.touch(mode=0)
    done = as_another_user(GRADLESS_MODELS="resnet18", HOME=str(tmp_path), TORCH_HOME=str(tmp_path))
    assert f"{file} is not readable by this user" in complaint(done)


_WITH_A_MOUNT = ["unshare", "--user", "--map-root-user", "--mount", "mount", "-t", "tmpfs", "tmpfs", "/dev/shm"]  # noqa: S108


def test_a_service_of_several_processes_needs_no_writable_dev_shm(
    serving: Callable[..., Any], warm_command: Any
) -> None:
    if subprocess.run(_WITH_A_MOUNT, capture_output=True, check=False).returncode:
        pytest.skip("namespaces cannot be made here")
    script = Path(__file__).with_name("read_only_shared_memory.py")
    command = [script, "serve", "--http-workers", "2"]
    with serving(warm_command.start, command, GRADLESS_MODELS="null") as server:
        assert not os.access(f"/proc/{server.process.pid}/root/dev/shm", os.W_OK)
        server.process.terminate()
        assert server.exit_status() == 0


def test_the_error_for_a_failed_download_names_the_weight_file(gradless: Run, tmp_path: Path) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        # Bound and never listening: connections are refused, and no other process gets the port.
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
