"""Jobs over files on a real Ray of this machine: the local job's rows, kept stretch by stretch."""

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
from models.ray_data.cluster import connect
from models.ray_data.results import left

# Each run of the command starts Ray and imports PyTorch in half a dozen processes.
pytestmark = pytest.mark.timeout(600)

# One whole stretch, and some.
FILES = 600
BROKEN = 530

Command = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pictures of a few kinds under many names, in two folders, and one that is none."""
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


def whole_stretches(output: Path) -> dict[str, int]:
    """When each was written."""
    return {path.name: path.stat().st_mtime_ns for path in output.glob("[0-9]*.parquet")}


def rows_of(path: Path) -> pa.Table:
    return pq.read_table(path).sort_by("path")


@pytest.mark.slow
def test_a_job_killed_midway_goes_on_and_gives_the_local_jobs_rows(
    images: Path, tmp_path: Path, gradless: Command, start_gradless: Any
) -> None:
    on_ray, here = tmp_path / "on-ray", tmp_path / "here.parquet"
    # Its forward takes no time: what is tried is what is around it.
    null = {"GRADLESS_MODELS": "null"}
    first = start_gradless("features", images, "-o", on_ray, "--ray", "local", **null)
    while not whole_stretches(on_ray):
        assert first.poll() is None, first.stderr.read()
        time.sleep(0.01)
    first.send_signal(signal.SIGKILL)
    first.wait()
    kept = whole_stretches(on_ray)

    again = gradless("features", images, "-o", on_ray, "--ray", "local", **null)
    resumed = gradless("features", images, "-o", on_ray, "--ray", "local", "--resume", "--strict", **null)
    local = gradless("features", images, "-o", here, **null)

    assert (again.returncode, resumed.returncode, local.returncode) == (2, 1, 0), resumed.stderr
    assert "--resume" in again.stderr
    assert whole_stretches(on_ray).items() >= kept.items()
    ours, theirs = rows_of(on_ray), rows_of(here)
    assert ours.schema.equals(theirs.schema)
    assert ours.schema.metadata[b"gradless.fingerprint"] == theirs.schema.metadata[b"gradless.fingerprint"]
    assert ours.drop_columns(["features"]).equals(theirs.drop_columns(["features"]))
    assert len(ours) == FILES - 1
    np.testing.assert_array_equal(vectors(ours), vectors(theirs))
    # And what had no answer is told alike.
    [told] = (on_ray / "_errors").iterdir()
    assert json.loads(told.read_text()) == json.loads((tmp_path / "here.parquet.errors.jsonl").read_text())


def vectors(table: pa.Table) -> Any:
    return np.stack(table["features"].combine_chunks().to_numpy(zero_copy_only=False))


def test_files_and_output_may_be_named_by_uris_and_the_networks_answers_are_the_local_ones(
    images: Path, tmp_path: Path, gradless: Command
) -> None:
    few = tmp_path / "few"
    few.mkdir()
    for path in sorted((images / "a").iterdir())[:40]:
        (few / path.name).hardlink_to(path)
    uri = few.as_uri()
    on_ray = gradless("classify", uri, "-o", (tmp_path / "on-ray").as_uri(), "--ray", "local", "--top-k", "2")
    local = gradless("classify", few, "-o", tmp_path / "here.parquet", "--top-k", "2")

    assert (on_ray.returncode, local.returncode) == (0, 0), on_ray.stderr
    ours, theirs = rows_of(tmp_path / "on-ray"), rows_of(tmp_path / "here.parquet")
    assert ours["label_1"].equals(theirs["label_1"])
    # The last bits depend on how many images were in a forward.
    np.testing.assert_allclose(ours["probability_2"], theirs["probability_2"], atol=1e-5)
    assert ours["path"].to_pylist() == [f"{uri}/{Path(path).name}" for path in theirs["path"].to_pylist()]


@pytest.mark.slow
def test_the_networks_features_are_the_local_ones(images: Path, tmp_path: Path, gradless: Command) -> None:
    few = sorted((images / "a").iterdir())[:40]
    on_ray = gradless("features", *few, "-o", tmp_path / "on-ray", "--ray", "local")
    local = gradless("features", *few, "-o", tmp_path / "here.parquet")

    assert (on_ray.returncode, local.returncode) == (0, 0), on_ray.stderr
    ours, theirs = rows_of(tmp_path / "on-ray"), rows_of(tmp_path / "here.parquet")
    assert ours["path"].equals(theirs["path"])
    # What the local command's are allowed to differ from the service's.
    np.testing.assert_allclose(vectors(ours), vectors(theirs), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--ray", "local", "--workers", "2"], "--workers are processes of this machine"),
        (["--ray", "local", "-o", "out.npy"], "-o out.npy: on a cluster the output is a folder"),
    ],
)
def test_what_cannot_be_is_said_in_one_line(
    arguments: list[str], said: str, images: Path, tmp_path: Path, gradless: Command
) -> None:
    ended = gradless("features", images, "-o", tmp_path / "out", *arguments)

    assert (ended.returncode, ended.stdout) == (2, "")
    assert f"gradless: {said}" in ended.stderr
    assert "Traceback" not in ended.stderr


@pytest.mark.parametrize(
    ("address", "said"),
    [
        ("127.0.0.1:1", "--ray 127.0.0.1:1: nobody answers there"),
        ("photos", "--ray photos: it must be local, auto, HOST:PORT or ray://HOST:PORT"),
    ],
)
def test_a_cluster_that_is_not_there_is_said_at_once(address: str, said: str) -> None:
    with pytest.raises(JobError, match=said):
        connect(address)


@pytest.mark.parametrize(
    ("done", "expected"),
    [
        ([], [(0, 4), (4, 8), (8, 10)]),
        ([(0, 4)], [(4, 8), (8, 10)]),
        # A stretch that was cut by a block of Ray's, and one whose neighbour was slower.
        ([(0, 2), (8, 10)], [(2, 4), (4, 8)]),
        ([(0, 4), (4, 8), (8, 10)], []),
    ],
)
def test_what_is_left_is_cut_at_the_same_places_however_often_a_job_is_interrupted(
    done: list[tuple[int, int]], expected: list[tuple[int, int]]
) -> None:
    assert list(left(10, done, at_most=4)) == expected
