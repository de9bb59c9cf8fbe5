"""`gradless classify` and `gradless features` as processes: compared with the server, interrupted, killed, failing."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx2
import numpy as np
import pyarrow.parquet as pq
import pytest

from models.images.samples import Sample, draw

Run = Callable[..., subprocess.CompletedProcess[bytes]]

# One thread: on a busy machine those of OpenMP wait for one another longer than they work.
EAGER = {"GRADLESS_BACKEND": "eager", "OMP_NUM_THREADS": "1"}

# The command, with parts of two files; it ends during the third part by `how`. Guarded, because workers import it.
_ENDS_IN_ITS_THIRD_PART = """
import os, signal
from app.cli import main
from models.offline import job

job._PART_FILES = 2
written = os.fsync
count = 0

def fsync(descriptor):
    global count
    written(descriptor)
    count += 1
    # One for the job file, and one for each part.
    if count == 4:
        {how}

if __name__ == "__main__":
    os.fsync = fsync
    main()
"""
_KILLED = "os.kill(os.getpid(), signal.SIGKILL)"
# As a terminal does: every process of the group receives it.
_INTERRUPTED = "os.killpg(os.getpgrp(), signal.SIGINT)"


@pytest.fixture
def small(small_model: Path) -> list[str]:
    """Options of a quick job."""
    return ["--model", str(small_model), "--batch-size", "2"]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Ten pictures of three kinds, one of them broken."""
    found = tmp_path / "pictures"
    found.mkdir()
    samples: tuple[Sample, ...] = ("clock", "traffic-light", "crossword")
    for number in range(9):
        draw(samples[number % 3]).rotate(10 * number).save(found / f"{number}.jpg")
    (found / "broken.jpg").write_bytes((found / "0.jpg").read_bytes()[:100])
    return found


@pytest.fixture
def ended_in_its_third_part(
    warm_command: Any,
    server_environment: Callable[..., dict[str, str]],
    folder: Path,
    small: list[str],
    tmp_path: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Return when the command and its workers have closed stdout."""

    def end(how: str, *options: str) -> subprocess.CompletedProcess[str]:
        script = tmp_path_factory.mktemp("script") / "ends.py"
        script.write_text(_ENDS_IN_ITS_THIRD_PART.format(how=how))
        command = [script, "features", folder, "-o", tmp_path / "ended.parquet", *small, *options]
        reading, writing = os.pipe()
        with script.with_name("stderr").open("w+") as stderr, os.fdopen(reading) as output:
            with os.fdopen(writing, "w") as stdout:
                process = warm_command.start(command, server_environment(**EAGER), stdout, stderr, new_session=True)
            with process:
                printed = output.read()
            stderr.seek(0)
            return subprocess.CompletedProcess(command, process.returncode, printed, stderr.read())

    return end


def lines(done: subprocess.CompletedProcess[bytes]) -> list[str]:
    return done.stderr.decode().splitlines()


def test_commands_give_the_same_answers_as_the_server(gradless: Run, server: Any, folder: Path, tmp_path: Path) -> None:
    outputs = tmp_path / "c.parquet", tmp_path / "f.parquet"
    for task, output in zip(("classify", "features"), outputs, strict=True):
        done = gradless(task, str(folder), "-o", str(output))
        assert (done.returncode, done.stdout) == (0, b"")
    classes, vectors = (pq.read_table(output).to_pylist() for output in outputs)
    assert [row["path"] for row in classes] == [str(folder / f"{number}.jpg") for number in range(9)]
    with httpx2.Client(base_url=server.address, timeout=60) as http:
        for row, vector in zip(classes, vectors, strict=True):
            body = Path(row["path"]).read_bytes()
            served = http.post("/v1/classify?top_k=5", content=body).json()
            assert row["fingerprint"] == vector["fingerprint"] == served["fingerprint"]
            predictions = served["results"][0]["predictions"]
            assert (row["label_1"], row["index_1"]) == (predictions[0]["label"], predictions[0]["index"])
            for rank, predicted in enumerate(predictions, 1):
                assert row[f"probability_{rank}"] == pytest.approx(predicted["probability"], abs=1e-5)
            features = http.post("/v1/features", content=body).json()["results"][0]["features"]
            np.testing.assert_allclose(vector["features"], features, rtol=1e-3, atol=1e-4)


def test_unreadable_files_are_reported_and_fail_with_strict(
    gradless: Run, small: list[str], folder: Path, tmp_path: Path
) -> None:
    output = tmp_path / "out.csv"
    done = gradless("classify", str(folder), "-o", str(output), *small, "--strict", **EAGER)
    assert done.returncode == 1
    first, last = lines(done)
    assert first.startswith(f"gradless: {folder}/broken.jpg: The JPEG image cannot be decoded")
    assert last.startswith(f"gradless: 9 images in {output} by small, ")
    assert last.endswith(f"/s; 1 files without an answer are in {tmp_path}/out.csv.errors.jsonl")
    [fault] = map(json.loads, (tmp_path / "out.csv.errors.jsonl").read_text().splitlines())
    assert fault["path"] == f"{folder}/broken.jpg"
    assert len(output.read_text().splitlines()) == 10


@pytest.mark.parametrize(
    ("how", "status", "message"),
    [
        (_KILLED, -signal.SIGKILL, ""),
        (_INTERRUPTED, 130, "gradless: stopped after 6 of 10 files: continue with --resume\n"),
    ],
    ids=["kill -9", "Ctrl-C"],
)
def test_a_resumed_command_writes_the_same_output(
    gradless: Run,
    small: list[str],
    folder: Path,
    tmp_path: Path,
    ended_in_its_third_part: Callable[..., subprocess.CompletedProcess[str]],
    how: str,
    status: int,
    message: str,
) -> None:
    ended, whole = tmp_path / "ended.parquet", tmp_path / "whole.parquet"
    stopped = ended_in_its_third_part(how, "--workers", "1")
    # The end of its output shows that no worker is left.
    assert (stopped.returncode, stopped.stdout) == (status, "")
    assert not message or stopped.stderr == message
    assert not ended.exists()
    refused = gradless("features", str(folder), "-o", str(ended), *small, **EAGER)
    assert refused.returncode == 2
    assert "ended.parquet.parts has parts of an earlier run: resume with --resume" in lines(refused)[-1]

    resumed = gradless("features", str(folder), "-o", str(ended), *small, "--resume", **EAGER)
    assert resumed.returncode == 0
    assert gradless("features", str(folder), "-o", str(whole), *small, **EAGER).returncode == 0
    assert ended.read_bytes() == whole.read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir() if path.is_file()) == [
        ".ended.parquet.job.json",
        ".whole.parquet.job.json",
        "ended.parquet",
        "ended.parquet.errors.jsonl",
        "whole.parquet",
        "whole.parquet.errors.jsonl",
    ]


def test_a_full_disk_is_one_line_and_finished_parts_are_kept(
    ended_in_its_third_part: Callable[..., subprocess.CompletedProcess[str]], tmp_path: Path
) -> None:
    output = tmp_path / "ended.parquet"
    done = ended_in_its_third_part("raise OSError(28, 'No space left on device')")
    assert done.returncode == 2
    assert done.stderr == f"gradless: {output} cannot be written: No space left on device\n"
    assert not output.exists()
    assert len(list((tmp_path / "ended.parquet.parts").glob("*.npz"))) >= 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("features", "no/such", "-o", "out.npy"), "no/such does not exist"),
        (
            ("features", ".", "-o", "out.npy"),
            "there is no image in .; in a folder only files with the suffix of an image",
        ),
        (("features", __file__, "-o", "out.txt"), "-o out.txt: its suffix must be one of .parquet or .npy"),
        (
            ("classify", __file__, "-o", "no/such/out.csv", "--model", "null"),
            "no/such/out.csv.parts cannot be written: No such",
        ),
        (("classify", __file__, "-o", "out.csv", "--model", "resnet5"), "no model is named 'resnet5'"),
    ],
)
def test_an_invalid_command_is_reported_in_one_line(
    gradless: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...], message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    done = gradless(*arguments, **EAGER)
    [line] = lines(done)
    assert (done.returncode, done.stdout) == (2, b"")
    assert line.startswith(f"gradless: {message}")
