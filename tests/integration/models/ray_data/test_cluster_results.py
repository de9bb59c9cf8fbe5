"""models/ray_data: chunks that Ray does not split, and a folder of results that holds complete files only."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from models.offline.rows import Columns, Rows
from models.ray_data.stages import chunk_files
from models.ray_data.storage import Results

# Ray splits blocks above 1.5 times this size.
RAY_BLOCK_BYTES = 128 * 2**20

ASKED = {"task": "features", "fingerprint": "0" * 16, "files": 4}
COLUMNS = Columns("features", "tiny", "0" * 16, (), dimensions=2, top_k=0)
STATES = np.zeros((4, 2), dtype=np.int64)


@pytest.fixture
def results(tmp_path: Path) -> Results:
    return Results(str(tmp_path / "out"))


def rows(*reasons: str | None) -> Rows:
    """One row per reason: a result for None, else a failure."""
    names = [f"{number}.png" for number in range(len(reasons))]
    no_classes = np.zeros((len(reasons), 0))
    vectors = np.zeros((len(reasons), 2), dtype=np.float32)
    return Rows(names, list(reasons), no_classes.astype(np.int32), no_classes.astype(np.float32), vectors)


def test_unfinished_files_of_a_killed_run_are_ignored(results: Results) -> None:
    folder = Path(results.location)
    folder.mkdir()
    (folder / "._job.json.unfinished").write_text("{")
    for resume in (False, True):
        results.check(resume=resume)
    results.begin(ASKED, STATES)

    (folder / ".000000000000-000000000002.parquet.unfinished").touch()
    (folder / "_errors").mkdir()
    (folder / "_errors" / ".000000000000-000000000002.jsonl.unfinished").write_text("{}\n")
    assert (results.chunks(), results.faults()) == ([], 0)
    results.add(0, rows(None, "no image"), COLUMNS)
    assert (results.chunks(), results.faults()) == ([(0, 2)], 1)


def test_a_file_that_is_readable_in_a_second_run_no_longer_counts_as_failed(results: Results) -> None:
    results.begin(ASKED, STATES)
    results.add(0, rows(None, "no image"), COLUMNS)
    results.add(0, rows(None, None), COLUMNS)
    assert (results.chunks(), results.faults()) == ([(0, 2)], 0)


def test_the_chunk_of_a_changed_file_is_done_again(results: Results) -> None:
    results.begin(ASKED, STATES)
    results.add(0, rows(None, "no image"), COLUMNS)
    results.add(2, rows(None, None), COLUMNS)
    now = STATES.copy()
    now[1] = (5, 5)

    assert results.begin(ASKED, STATES) == 0
    assert results.begin(ASKED, now) == 1
    assert (results.chunks(), results.faults()) == ([(2, 4)], 0)
    results.add(0, rows(None, None), COLUMNS)
    assert results.begin(ASKED, now) == 0
    assert (results.chunks(), results.faults()) == ([(0, 2), (2, 4)], 0)


@pytest.mark.parametrize("batch_size", [1, 8, 30, 32])
@pytest.mark.parametrize("crop", [32, 224, 363, 384, 600])
def test_a_chunk_is_whole_batches_and_fits_into_one_block(batch_size: int, crop: int) -> None:
    files = chunk_files(batch_size, crop, row_bytes=5120)
    assert files % batch_size == 0
    assert batch_size <= files <= 512
    assert files * 3 * crop**2 <= RAY_BLOCK_BYTES


def test_a_chunk_has_fewer_files_if_results_are_large() -> None:
    assert chunk_files(32, 224, row_bytes=5120) == 512
    assert chunk_files(32, 224, row_bytes=2**20) == 64
    # At least one batch of any size.
    assert chunk_files(1024, 600, row_bytes=2**20) == 1024
