"""models/offline/parts.py: parts of an interrupted job are complete and belong to one job."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from models.interface.errors import JobError
from models.offline.identity import Identity, digest_of, states_of
from models.offline.parts import Parts
from models.offline.rows import Rows

FILES = 9
IDENTITY = {"fingerprint": "0" * 16, "batch_size": 1, "max_image_pixels": 100, "files_digest": "f" * 16}


Open = Callable[..., Parts]


def rows(*numbers: int) -> Rows:
    vectors = np.array(numbers, dtype=np.float32).reshape(-1, 1)
    no_classes = np.zeros((len(numbers), 0))
    errors = [f"{number} is odd" if number % 2 else None for number in numbers]
    paths = list(map(str, numbers))
    return Rows(paths, errors, no_classes.astype(np.int32), no_classes.astype(np.float32), vectors)


def states(*changed: int) -> NDArray[np.int64]:
    """The states of all files, other ones for those `changed`."""
    found = np.zeros((FILES, 2), dtype=np.int64)
    found[list(changed), 1] = 1
    return found


def numbers(parts: Parts) -> list[int]:
    return [int(number) for each in parts.rows() for number in each.features[:, 0]]


@pytest.fixture
def output(tmp_path: Path) -> Path:
    return tmp_path / "out.parquet"


@pytest.fixture
def open_parts(output: Path) -> Iterator[Open]:
    """Open the parts of `output`; they are closed with the test."""
    with contextlib.ExitStack() as opened:
        yield lambda identity=IDENTITY, states=states(), resume=True: opened.enter_context(  # noqa: B008 - of each test
            closing(Parts(output, identity, states, resume=resume))
        )


@pytest.fixture
def begun(output: Path) -> Callable[..., Path]:
    """Two parts of an earlier run, files 0 to 4; the folder that they are in."""

    def begin(identity: Identity = IDENTITY) -> Path:
        parts = Parts(output, identity, states(), resume=False)
        parts.add(0, rows(0, 1, 2))
        parts.add(3, rows(3, 4))
        parts.close()
        return parts.folder

    return begin


def test_a_later_run_continues_after_the_parts(open_parts: Open, begun: Callable[[], Path]) -> None:
    begun()
    parts = open_parts()
    assert (parts.done, parts.remaining, parts.changed) == (5, [(5, 9)], 0)
    parts.add(5, rows(5, 6))
    assert numbers(parts) == [0, 1, 2, 3, 4, 5, 6]
    assert [fault for each in parts.rows() for fault in each.faults] == [(n, f"{n} is odd") for n in "135"]


def test_resuming_without_parts_starts_the_job(open_parts: Open) -> None:
    assert open_parts().done == 0


def test_parts_of_an_earlier_run_are_not_discarded(open_parts: Open, begun: Callable[[], Path]) -> None:
    begun()
    with pytest.raises(JobError, match=r"out\.parquet\.parts has parts of an earlier run: resume with --resume"):
        open_parts(resume=False)


def test_an_empty_folder_of_parts_does_not_block_a_run(open_parts: Open) -> None:
    open_parts().close()
    another = {**IDENTITY, "fingerprint": "1" * 16}
    parts = open_parts(another, resume=False)
    parts.add(0, rows(0))
    parts.close()
    assert open_parts(another).done == 1


@pytest.mark.parametrize(
    ("identity", "message"),
    [
        ({**IDENTITY, "fingerprint": "1" * 16}, "fingerprint 0{16}, but this run has 1{16}"),
        ({**IDENTITY, "files_digest": "e" * 16}, "files digest f{16}, but this run has e{16}"),
        ({**IDENTITY, "batch_size": 16}, "batch size 1, but this run has 16"),
        ({**IDENTITY, "max_image_pixels": 99}, "max image pixels 100, but this run has 99"),
    ],
)
def test_parts_of_another_job_are_refused(
    open_parts: Open, begun: Callable[[], Path], identity: Identity, message: str
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


def test_files_of_a_missing_part_are_processed_again(open_parts: Open, begun: Callable[[], Path]) -> None:
    (begun() / "000000000000-000000000003.npz").unlink()
    parts = open_parts()
    assert (parts.done, parts.remaining) == (2, [(0, 3), (5, 9)])
    parts.add(0, rows(0, 1, 2))
    assert numbers(parts) == [0, 1, 2, 3, 4]


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


def test_a_changed_file_is_done_again_and_no_other(open_parts: Open, begun: Callable[[], Path]) -> None:
    begun()
    parts = open_parts(states=states(1, 7))
    assert (parts.changed, parts.done, parts.remaining) == (1, 4, [(1, 2), (5, 9)])
    parts.add(1, rows(10))
    parts.close()

    later = open_parts(states=states(1, 7))
    assert (later.changed, later.remaining, numbers(later)) == (0, [(5, 9)], [0, 10, 2, 3, 4])


def test_the_batch_of_a_changed_file_is_done_again(open_parts: Open, begun: Callable[..., Path]) -> None:
    in_pairs = {**IDENTITY, "batch_size": 2}
    begun(in_pairs)
    parts = open_parts(in_pairs, states=states(1))
    assert (parts.changed, parts.remaining) == (1, [(0, 2), (5, 9)])


def test_a_kill_while_a_part_is_split_changes_nothing(
    open_parts: Open, begun: Callable[[], Path], tmp_path: Path
) -> None:
    folder = begun()
    before = tmp_path / "before"
    shutil.copytree(folder, before)
    open_parts(states=states(1)).close()
    # The pieces are there, and the whole part too.
    shutil.copytree(before, folder, dirs_exist_ok=True)

    unchanged = open_parts()
    assert (unchanged.changed, unchanged.remaining, numbers(unchanged)) == (0, [(5, 9)], [0, 1, 2, 3, 4])
    unchanged.close()
    assert open_parts(states=states(1)).remaining == [(1, 2), (5, 9)]


def test_the_digest_depends_on_the_order_of_files() -> None:
    assert digest_of(["a", "b"]) != digest_of(["b", "a"]) != digest_of(["ab"])


def test_the_state_of_a_file_depends_on_its_size_and_time(tmp_path: Path) -> None:
    file = tmp_path / "a.png"
    found = []
    for content, changed_at in (("one", 1), ("one", 2), ("three", 2)):
        file.write_text(content)
        os.utime(file, (changed_at, changed_at))
        found.append(tuple(*states_of([str(file)]).tolist()))
    file.unlink()
    assert len({*found, tuple(*states_of([str(file)]).tolist())}) == 4
    assert states_of(["s3://bucket/a.png"]).tolist() == [[-1, -1]]
