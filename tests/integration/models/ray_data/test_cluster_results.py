"""models/ray_data: stretches that Ray leaves whole, and a folder of results that holds nothing which is not whole."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from models.offline.parts import JobIdentity
from models.offline.tables import Columns
from models.ray_data.results import Results
from models.ray_data.stages import stretch_files

# Over one and a half of it Ray cuts a block into pieces.
RAYS_BLOCK_BYTES = 128 * 2**20

ASKED = JobIdentity(
    "features",
    "tiny",
    "0" * 16,
    top_k=0,
    batch_size=2,
    max_image_bytes=100,
    max_image_pixels=100,
    max_aspect_ratio=50,
    files=4,
    files_digest="f" * 16,
)
COLUMNS = Columns("features", "tiny", "0" * 16, (), dimensions=2, top_k=0)


@pytest.fixture
def results(tmp_path: Path) -> Results:
    return Results(str(tmp_path / "out"))


def rows(*reasons: str | None) -> pa.Table:
    """A row for each: with an answer for None, else with that reason why there is none."""
    vectors = pa.array(np.zeros(2 * len(reasons), dtype=np.float32))
    columns = [
        pa.array([f"{number}.png" for number in range(len(reasons))]),
        pa.array(["0" * 16] * len(reasons)).dictionary_encode(),
        pa.FixedSizeListArray.from_arrays(vectors, 2),
        pa.array(reasons, pa.string()),
    ]
    return pa.Table.from_arrays(columns, schema=COLUMNS.schema_in_progress)


def test_what_a_kill_has_left_unfinished_is_in_nobodys_way(results: Results) -> None:
    folder = Path(results.place)
    folder.mkdir()
    (folder / "._job.json.unfinished").write_text("{")
    for resume in (False, True):
        results.check(resume=resume)
    results.begin(ASKED)

    (folder / ".000000000000-000000000002.parquet.unfinished").touch()
    (folder / "_errors").mkdir()
    (folder / "_errors" / ".000000000000-000000000002.jsonl.unfinished").write_text("{}\n")
    assert (results.stretches(), results.faults()) == ([], 0)
    results.add(0, rows(None, "no image"), COLUMNS)
    assert (results.stretches(), results.faults()) == ([(0, 2)], 1)


def test_a_file_that_can_be_read_after_all_is_no_fault_any_more(results: Results) -> None:
    results.begin(ASKED)
    results.add(0, rows(None, "no image"), COLUMNS)
    results.add(0, rows(None, None), COLUMNS)
    assert (results.stretches(), results.faults()) == ([(0, 2)], 0)


@pytest.mark.parametrize("batch_size", [1, 8, 30, 32])
@pytest.mark.parametrize("crop", [32, 224, 363, 384, 600])
def test_a_stretch_is_whole_batches_that_pass_as_one_block(batch_size: int, crop: int) -> None:
    files = stretch_files(batch_size, crop, row_bytes=5120)
    assert files % batch_size == 0
    assert batch_size <= files <= 512
    assert files * 3 * crop**2 <= RAYS_BLOCK_BYTES


def test_a_stretch_is_shorter_where_answers_are_long() -> None:
    assert stretch_files(32, 224, row_bytes=5120) == 512
    assert stretch_files(32, 224, row_bytes=2**20) == 64
    # A batch is what a forward takes, whatever its size.
    assert stretch_files(1024, 600, row_bytes=2**20) == 1024
