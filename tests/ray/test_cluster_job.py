"""Jobs over files on a real Ray of this machine write the same rows as the local command, chunk by chunk."""

from __future__ import annotations

import json
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from models.images.samples import Sample, draw, encode
from models.interface.errors import JobError
from models.offline.parts import remaining_chunks

# Each run of the command starts Ray and imports PyTorch in half a dozen processes.
pytestmark = pytest.mark.timeout(600)

# One whole chunk and a part of a second.
FILES = 600
BROKEN = 530

Command = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A few drawn images under many names in two folders, and one broken file."""
    folder = tmp_path_factory.mktemp("images")
    drawn = [encode(draw(sample), "JPEG") for sample in get_args(Sample)]
    for kind, encoded in enumerate(drawn):
        (folder / f".{kind}").write_bytes(encoded)
    for number in range(FILES):
        path = folder / ("a" if number < FILES // 2 else "b") / f"{number:04}.jpg"
        path.parent.mkdir(exist_ok=True)
        path.hardlink_to(folder / f".{number % len(drawn)}")
    broken = folder / "b" / f"{BROKEN:04}.jpg"
    broken.unlink()
    broken.write_bytes(b"no image")
    return folder


def chunk_times(output: Path) -> dict[str, int]:
    """The time at which each chunk was written."""
    return {path.name: path.stat().st_mtime_ns for path in output.glob("[0-9]*.parquet")}


def rows_of(path: Path) -> pa.Table:
    return pq.read_table(path).sort_by("path")


@pytest.mark.slow
def test_a_killed_job_resumes_and_writes_the_rows_of_the_local_job(
    images: Path, tmp_path: Path, gradless: Command, start_gradless: Any
) -> None:
    on_ray, here = tmp_path / "on-ray", tmp_path / "here.parquet"
    # The null model has no forward: the test is about the rest.
    null = {"GRADLESS_MODELS": "null"}
    first = start_gradless("features", images, "-o", on_ray, "--ray", "local", **null)
    while not chunk_times(on_ray):
        assert first.poll() is None, first.stderr.read()
        time.sleep(0.01)
    first.send_signal(signal.SIGKILL)
    first.wait()
    kept = chunk_times(on_ray)

    again = gradless("features", images, "-o", on_ray, "--ray", "local", **null)
    resumed = gradless("features", images, "-o", on_ray, "--ray", "local", "--resume", "--strict", **null)
    local = gradless("features", images, "-o", here, **null)

    assert (again.returncode, resumed.returncode, local.returncode) == (2, 1, 0), resumed.stderr
    assert "--resume" in again.stderr
    assert chunk_times(on_ray).items() >= kept.items()
    ours, theirs = rows_of(on_ray), rows_of(here)
    assert ours.schema.equals(theirs.schema)
    assert ours.schema.metadata[b"gradless.fingerprint"] == theirs.schema.metadata[b"gradless.fingerprint"]
    assert ours.drop_columns(["features"]).equals(theirs.drop_columns(["features"]))
    assert len(ours) == FILES - 1
    np.testing.assert_array_equal(vectors(ours), vectors(theirs))
    # Both list the same failures.
    [errors] = (on_ray / "_errors").iterdir()
    assert json.loads(errors.read_text()) == json.loads((tmp_path / "here.parquet.errors.jsonl").read_text())


def vectors(table: pa.Table) -> Any:
    return np.stack(table["features"].combine_chunks().to_numpy(zero_copy_only=False))


def test_files_and_output_may_be_uris_and_the_classes_are_those_of_the_local_job(
    images: Path, tmp_path: Path, gradless: Command
) -> None:
    few = tmp_path / "few"
    few.mkdir()
    for path in sorted((images / "a").iterdir())[:40]:
        (few / path.name).hardlink_to(path)
    uri = few.as_uri()
    small = {"GRADLESS_MODELS": "shufflenet_v2_x0_5:random", "GRADLESS_BACKEND": "eager"}
    on_ray = gradless("classify", uri, "-o", (tmp_path / "on-ray").as_uri(), "--ray", "local", "--top-k", "2", **small)
    local = gradless("classify", few, "-o", tmp_path / "here.parquet", "--top-k", "2", **small)

    assert (on_ray.returncode, local.returncode) == (0, 0), on_ray.stderr
    ours, theirs = rows_of(tmp_path / "on-ray"), rows_of(tmp_path / "here.parquet")
    assert ours["label_1"].equals(theirs["label_1"])
    # The last bits depend on the size of the batch.
    np.testing.assert_allclose(ours["probability_2"], theirs["probability_2"], atol=1e-5)
    assert ours["path"].to_pylist() == [f"{uri}/{Path(path).name}" for path in theirs["path"].to_pylist()]


@pytest.mark.slow
def test_features_are_those_of_the_local_job(images: Path, tmp_path: Path, gradless: Command) -> None:
    few = sorted((images / "a").iterdir())[:40]
    on_ray = gradless("features", *few, "-o", tmp_path / "on-ray", "--ray", "local")
    local = gradless("features", *few, "-o", tmp_path / "here.parquet")

    assert (on_ray.returncode, local.returncode) == (0, 0), on_ray.stderr
    ours, theirs = rows_of(tmp_path / "on-ray"), rows_of(tmp_path / "here.parquet")
    assert ours["path"].equals(theirs["path"])
    # The tolerance that also holds between the local command and the server.
    np.testing.assert_allclose(vectors(ours), vectors(theirs), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--ray", "local", "--workers", "2"], "--workers are processes of this machine"),
        (["--ray", "local", "-o", "out.npy"], "-o out.npy: on a cluster the output is a folder"),
    ],
)
def test_contradictory_options_are_refused_in_one_line(
    arguments: list[str], message: str, images: Path, tmp_path: Path, gradless: Command
) -> None:
    ended = gradless("features", images, "-o", tmp_path / "out", *arguments)

    assert (ended.returncode, ended.stdout) == (2, "")
    assert f"gradless: {message}" in ended.stderr
    assert "Traceback" not in ended.stderr


@pytest.mark.parametrize(
    ("address", "message"),
    [
        ("127.0.0.1:1", "--ray 127.0.0.1:1 cannot be reached"),
        ("photos", "--ray photos: it must be local, auto, HOST:PORT or ray://HOST:PORT"),
    ],
)
def test_a_cluster_that_cannot_be_reached_is_reported_at_once(address: str, message: str) -> None:
    # Takes two seconds of each process that collects tests.
    from models.ray_data.job import connect  # noqa: PLC0415

    with pytest.raises(JobError, match=message):
        connect(address)


@pytest.mark.parametrize(
    ("done", "expected"),
    [
        ([], [(0, 4), (4, 8), (8, 10)]),
        ([(0, 4)], [(4, 8), (8, 10)]),
        # A chunk that Ray has split, and a chunk whose predecessor was slower.
        ([(0, 2), (8, 10)], [(2, 4), (4, 8)]),
        ([(0, 4), (4, 8), (8, 10)], []),
    ],
)
def test_the_remaining_files_are_split_at_the_same_places_after_each_interruption(
    done: list[tuple[int, int]], expected: list[tuple[int, int]]
) -> None:
    assert list(remaining_chunks(10, done, max_files=4)) == expected
