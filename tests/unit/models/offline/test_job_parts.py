"""models/offline/parts.py: parts of an interrupted job are complete and belong to one job."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pytest

from models.interface.errors import JobError
from models.offline.parts import JobIdentity, Parts

IDENTITY = JobIdentity(
    "features",
    "tiny",
    "0" * 16,
    top_k=0,
    batch_size=32,
    max_image_bytes=100,
    max_image_pixels=100,
    max_aspect_ratio=50,
    max_decode_seconds=1,
    max_decode_bytes=100,
    files=9,
    files_digest="f" * 16,
)


Open = Callable[..., Parts]


def rows(*numbers: int) -> pa.Table:
    return pa.table({"number": list(numbers), "fingerprint": ["f"] * len(numbers)})


def numbers(parts: Parts) -> list[int]:
    return [number for table in parts.tables() for number in table["number"].to_pylist()]


@pytest.fixture
def output(tmp_path: Path) -> Path:
    return tmp_path / "out.parquet"


@pytest.fixture
def open_parts(output: Path) -> Iterator[Open]:
    """Open the parts of `output`; they are closed with the test."""
    with contextlib.ExitStack() as opened:
        yield lambda identity=IDENTITY, resume=True: opened.enter_context(
            closing(Parts(output, identity, resume=resume))
        )


@pytest.fixture
def begun(output: Path) -> Callable[[], Path]:
    """Two parts of an earlier run, files 0 to 4; the folder that they are in."""

    def begin() -> Path:
        parts = Parts(output, IDENTITY, resume=False)
        parts.add(0, rows(0, 1, 2))
        parts.add(3, rows(3, 4))
        parts.close()
        return parts.folder

    return begin


def test_a_later_run_continues_after_the_parts(open_parts: Open, begun: Callable[[], Path]) -> None:
    begun()
    parts = open_parts()
    assert parts.done == 5
    parts.add(5, rows(5, 6))
    assert numbers(parts) == [0, 1, 2, 3, 4, 5, 6]


def test_resuming_without_parts_starts_the_job(open_parts: Open) -> None:
    assert open_parts().done == 0


def test_parts_of_an_earlier_run_are_not_discarded(open_parts: Open, begun: Callable[[], Path]) -> None:
    begun()
    with pytest.raises(JobError, match=r"out\.parquet\.parts has parts of an earlier run: resume with --resume"):
        open_parts(resume=False)


def test_an_empty_folder_of_parts_does_not_block_a_run(open_parts: Open) -> None:
    open_parts().close()
    another = replace(IDENTITY, fingerprint="1" * 16)
    parts = open_parts(another, resume=False)
    parts.add(0, rows(0))
    parts.close()
    assert open_parts(another).done == 1


@pytest.mark.parametrize(
    ("identity", "message"),
    [
        (replace(IDENTITY, fingerprint="1" * 16), "fingerprint 0{16}, but this run has 1{16}"),
        (replace(IDENTITY, files_digest="e" * 16), "files digest f{16}, but this run has e{16}"),
        (replace(IDENTITY, batch_size=16), "batch size 32, but this run has 16"),
        (replace(IDENTITY, max_image_pixels=99), "max image pixels 100, but this run has 99"),
    ],
)
def test_parts_of_another_job_are_refused(
    open_parts: Open, begun: Callable[[], Path], identity: JobIdentity, message: str
) -> None:
    begun()
    with pytest.raises(JobError, match=message):
        open_parts(identity)


def test_parts_are_locked_by_one_process(open_parts: Open) -> None:
    first = open_parts()
    with pytest.raises(JobError, match="another process is using"):
        open_parts()
    first.close()
    open_parts()


def test_an_incomplete_part_is_ignored(
    open_parts: Open, begun: Callable[[], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    begun()
    parts = open_parts()

    def no_space(_descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as broken:
        broken.setattr(os, "fsync", no_space)
        with pytest.raises(OSError, match="No space left"):
            parts.add(5, rows(5))
    assert parts.done == 5
    parts.close()
    assert open_parts().done == 5


def test_writing_a_part_again_changes_nothing(open_parts: Open, begun: Callable[[], Path]) -> None:
    begun()
    parts = open_parts()
    parts.add(3, rows(3, 4))
    assert numbers(parts) == [0, 1, 2, 3, 4]


def test_files_after_a_missing_part_are_processed_again(open_parts: Open, begun: Callable[[], Path]) -> None:
    (begun() / "000000000000-000000000003.parquet").unlink()
    assert open_parts().done == 0


def test_parts_after_a_missing_one_are_never_used_by_another_job(open_parts: Open, begun: Callable[[], Path]) -> None:
    (begun() / "000000000000-000000000003.parquet").unlink()
    another = replace(IDENTITY, model="other", fingerprint="1" * 16)
    parts = open_parts(another, resume=False)
    parts.add(0, rows(10, 11, 12))
    parts.close()
    resumed = open_parts(another)
    assert (resumed.done, numbers(resumed)) == (3, [10, 11, 12])


def test_an_unreadable_job_file_is_an_error(open_parts: Open, begun: Callable[[], Path]) -> None:
    (begun() / "job.json").write_text("{")
    with pytest.raises(JobError, match=r"job\.json cannot be read: delete"):
        open_parts()


def test_parts_are_removed_in_one_step_and_the_next_run_deletes_leftovers(
    open_parts: Open, begun: Callable[[], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    begun()
    parts = open_parts()

    def killed(_path: object, **_options: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as broken:
        broken.setattr(os, "unlink", killed)
        with pytest.raises(KeyboardInterrupt):
            parts.remove()
    parts.close()
    assert not parts.folder.exists()
    assert open_parts(resume=False).done == 0
    assert [path.name for path in parts.folder.parent.iterdir()] == [parts.folder.name]


def test_the_digest_depends_on_the_order_of_files() -> None:
    assert JobIdentity.digest(["a", "b"]) != JobIdentity.digest(["b", "a"]) != JobIdentity.digest(["ab"])


def test_the_digest_depends_on_changes_of_files(tmp_path: Path) -> None:
    file = tmp_path / "a.png"
    digests = []
    for content, changed_at in (("one", 1), ("one", 2), ("three", 2)):
        file.write_text(content)
        os.utime(file, (changed_at, changed_at))
        digests.append(JobIdentity.digest([str(file)]))
    file.unlink()
    assert len({*digests, JobIdentity.digest([str(file)])}) == 4
