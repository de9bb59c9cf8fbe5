"""A job ended before any one of its changes on the disk, and resumed: the output is an uninterrupted run's."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from models.networks.specs import ModelSpec
from models.offline import files, job
from models.offline.job import FolderJob, JobRequest
from models.serving.model_instance import ServingOptions

# What makes a change on the disk stay. Path and shutil come down to these.
CHANGES = ("fsync", "replace", "rename", "unlink", "rmdir")


class Killed(BaseException):
    """Nothing that the process still does reaches the disk."""


class Disk:
    """Counts changes, and before that of number `ends_at` the process has ended."""

    def __init__(self, ends_at: int | None, monkeypatch: pytest.MonkeyPatch) -> None:
        self.changes = 0
        self._ends_at = ends_at
        for name in CHANGES:
            monkeypatch.setattr(os, name, self._counted(getattr(os, name)))

    def _counted(self, change: Callable[..., Any]) -> Callable[..., Any]:
        def counted(*arguments: Any, **options: Any) -> Any:
            if self._ends_at is not None and self.changes >= self._ends_at:
                raise Killed
            self.changes += 1
            return change(*arguments, **options)

        return counted


@pytest.fixture
def job_request(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> JobRequest:
    """Three parts of two files, one of which is no image."""
    folder = tmp_path / "pictures"
    folder.mkdir()
    for number in range(6):
        Image.new("RGB", (50, 40), (40 * number, 255 - 40 * number, 90)).save(folder / f"{number}.png")
    (folder / "3.png").write_text("no picture")
    monkeypatch.setattr(job, "_PART_FILES", 2)
    return JobRequest(
        task="features",
        files=files.find([folder]),
        output=tmp_path / "out.npy",
        top_k=0,
        batch_size=2,
        workers=0,
        max_bytes=2**20,
    )


def done(job_request: JobRequest, spec: ModelSpec) -> None:
    with closing(FolderJob(job_request, ServingOptions(models=[spec], backend="eager"))) as work:
        with closing(work.steps()) as steps:
            for _ in steps:
                pass
        work.finish()


def written(job_request: JobRequest) -> dict[str, bytes]:
    """Return the content of every file except the pictures, and except the job file, which has a time in it."""
    folder = job_request.output.parent
    return {
        str(path.relative_to(folder)): b"" if path.name == ".out.npy.job.json" else path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and path.suffix != ".png"
    }


def test_after_a_kill_at_any_point_a_resumed_job_writes_the_same_output(
    job_request: JobRequest, tiny: ModelSpec, tmp_path: Path
) -> None:
    with pytest.MonkeyPatch.context() as counting:
        disk = Disk(None, counting)
        done(job_request, tiny)
    whole = written(job_request)
    # Of three parts, two lists and the output: each made whole and given its name, and the parts removed.
    assert disk.changes > 3 * 2 + 3 * 2 + 4
    for ends_at in range(disk.changes):
        for name in whole:
            (tmp_path / name).unlink()
        with pytest.MonkeyPatch.context() as killing:
            Disk(ends_at, killing)
            with pytest.raises(Killed):
                done(job_request, tiny)
        done(replace(job_request, resume=True), tiny)
        assert written(job_request) == whole, f"killed before change {ends_at}"
