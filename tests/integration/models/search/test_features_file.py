"""FeaturesFile: features files are read piece by piece, and other files are refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from models.interface.errors import JobError
from models.search.building import FeaturesFile

_METADATA = {"gradless.model": "m", "gradless.fingerprint": "f"}
_VECTORS = pa.FixedSizeListArray.from_arrays(pa.array(np.arange(8, dtype=np.float32)), 2)
_WHOLE = pa.table({"path": list("abcd"), "fingerprint": ["f"] * 4, "features": _VECTORS})


def written(path: Path, table: pa.Table, metadata: dict[str, str] | None = None) -> Path:
    pq.write_table(table.replace_schema_metadata(_METADATA if metadata is None else metadata), path, row_group_size=3)
    return path


def test_rows_are_read_in_order_for_any_row_groups(tmp_path: Path) -> None:
    file = FeaturesFile(written(tmp_path / "f.parquet", _WHOLE))
    pieces = list(file)

    assert (file.rows, file.dimensions, file.model, file.fingerprint) == (4, 2, "m", "f")
    assert [path for paths, _ in pieces for path in paths] == list("abcd")
    assert np.concatenate([vectors for _, vectors in pieces]).tolist() == [[0, 1], [2, 3], [4, 5], [6, 7]]


@pytest.mark.parametrize(
    ("table", "metadata", "words"),
    [
        (_WHOLE.drop_columns("path"), _METADATA, "no column 'path'"),
        (_WHOLE, {}, "does not say which model made it"),
        (_WHOLE.set_column(2, "features", pa.array([[1.0, 2.0]] * 4)), _METADATA, "list<element: double>"),
        (_WHOLE.set_column(1, "fingerprint", pa.array(["f", "f", "g", "f"])), _METADATA, "of f and of g"),
        (_WHOLE.set_column(0, "path", pa.array(["a", None, "c", "d"])), _METADATA, "rows without a path"),
        (
            _WHOLE.set_column(
                2, "features", pa.FixedSizeListArray.from_arrays(pa.array([np.nan] * 8, pa.float32()), 2)
            ),
            _METADATA,
            "not finite",
        ),
    ],
    ids=["column", "metadata", "type", "fingerprints", "null", "nan"],
)
def test_a_file_with_other_contents_is_refused_with_the_reason(
    tmp_path: Path, table: pa.Table, metadata: dict[str, str], words: str
) -> None:
    with pytest.raises(JobError, match=words):
        list(FeaturesFile(written(tmp_path / "f.parquet", table, metadata)))


def test_a_file_of_another_format_or_a_truncated_file_is_refused(tmp_path: Path) -> None:
    whole = written(tmp_path / "f.parquet", _WHOLE).read_bytes()
    (tmp_path / "short.parquet").write_bytes(whole[:-20])
    (tmp_path / "text.parquet").write_text("path")

    for name in ("short.parquet", "text.parquet", "missing.parquet"):
        with pytest.raises(JobError, match="no readable features file"):
            FeaturesFile(tmp_path / name)


@pytest.mark.parametrize(("dimensions", "rows"), [(100_000, 60), (5_000_000, 2)], ids=["maps", "vast maps"])
def test_pieces_of_large_vectors_have_few_rows(tmp_path: Path, dimensions: int, rows: int) -> None:
    vectors = pa.FixedSizeListArray.from_arrays(pa.array(np.ones(rows * dimensions, dtype=np.float32)), dimensions)
    table = pa.table({"path": list(map(str, range(rows))), "fingerprint": ["f"] * rows, "features": vectors})
    pq.write_table(table.replace_schema_metadata(_METADATA), tmp_path / "f.parquet")

    pieces = list(FeaturesFile(tmp_path / "f.parquet"))

    assert [path for paths, _ in pieces for path in paths] == table["path"].to_pylist()
    assert all(found.nbytes <= 16 * 2**20 or len(paths) == 1 for paths, found in pieces)
