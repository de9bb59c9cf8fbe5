"""Ctrl-C while `gradless stats` is at work: what was done is printed."""

from __future__ import annotations

import os
import signal
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest

from models.images.samples import draw


def _until_it_waits(process: psutil.Process) -> None:
    """A signal between Python's last check and the read would be handled after the read, so never."""
    while process.status() == psutil.STATUS_RUNNING:
        pass


@pytest.mark.parametrize("workers", [0, 1])
def test_ctrl_c_prints_the_results_so_far(
    gradless_path: Path,
    server_environment: Callable[..., dict[str, str]],
    warm_command: Any,
    tmp_path: Path,
    workers: int,
) -> None:
    for picture in ("clock", "crossword"):
        draw(picture).save(tmp_path / f"{picture}.png")
    # Reading it waits for a writer, and there is none.
    endless = tmp_path / "endless"
    os.mkfifo(endless)
    command = [gradless_path, "stats", tmp_path, endless, "--workers", str(workers)]
    with tempfile.TemporaryFile() as stdout, tempfile.TemporaryFile() as stderr:
        with warm_command.start(command, server_environment(), stdout, stderr, new_session=True) as process:
            try:
                # Opened only when the reader has come to it.
                with endless.open("wb"):
                    _until_it_waits(psutil.Process(process.pid))
                    os.killpg(process.pid, signal.SIGINT)
                    process.wait(60)
            finally:
                process.kill()
        stdout.seek(0)
        stderr.seek(0)
        out, err = stdout.read(), stderr.read()

    assert process.returncode == 130
    assert b"Traceback" not in err
    images = {0: ["2"], 1: ["0", "1", "2"]}[workers]
    skipped, interrupted = err.decode().splitlines()
    assert skipped == "gradless: not read: 1 other file (1 without a suffix)"
    assert interrupted in [
        f"gradless: interrupted: these are the results of the first {number} images" for number in images
    ]
    assert out.startswith(b"# ") or workers
