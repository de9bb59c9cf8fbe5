"""models/scale/results.py: a folder of results holds what is whole, whenever somebody was ended who wrote into it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from models.folders.parts import Asked
from models.folders.tables import Columns
from models.scale.results import Results

ASKED = Asked("features", "tiny", "0" * 16, top_k=0, batch_size=2, files=4, files_digest="f" * 16)
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
