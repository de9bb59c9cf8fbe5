"""A job's output as Parquet. Needs pyarrow, the extra `folders`; the other formats do not."""

from __future__ import annotations

from typing import IO

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from models.offline.rows import Columns, Rows


def schema_of(columns: Columns) -> pa.Schema:
    """Return the schema of the finished output. Its metadata has model and fingerprint."""
    metadata = {"gradless.model": columns.model, "gradless.fingerprint": columns.fingerprint}
    fields = [pa.field("path", pa.string()), pa.field("fingerprint", pa.dictionary(pa.int32(), pa.string()))]
    if columns.task == "features":
        fields.append(pa.field("features", pa.list_(pa.float32(), columns.dimensions)))
    kinds = {"label": pa.string(), "index": pa.int32(), "probability": pa.float32()}
    ranks = range(1, columns.top_k + 1)
    return pa.schema([*fields, *(pa.field(f"{what}_{k}", kinds[what]) for k in ranks for what in kinds)], metadata)


def table_of(columns: Columns, rows: Rows) -> pa.Table:
    """Return the rows with an answer as a table of `schema_of(columns)`."""
    rows = rows.answered()
    fingerprints = pa.DictionaryArray.from_arrays(np.zeros(len(rows), dtype=np.int32), pa.array([columns.fingerprint]))
    arrays = [pa.array(rows.paths, pa.string()), fingerprints]
    if columns.task == "features":
        arrays.append(pa.FixedSizeListArray.from_arrays(pa.array(rows.features.reshape(-1)), columns.dimensions))
    for rank in range(columns.top_k):
        indices = rows.indices[:, rank]
        arrays += [
            pa.array([columns.labels[index] for index in indices.tolist()], pa.string()),
            pa.array(indices),
            pa.array(rows.probabilities[:, rank]),
        ]
    return pa.Table.from_arrays(arrays, schema=schema_of(columns))


def writer(file: IO[bytes], columns: Columns) -> pq.ParquetWriter:
    """Return the writer for tables of `table_of`."""
    repeating = [name for name in columns.names if name != "path" and not name.startswith("probability_")]
    return pq.ParquetWriter(file, schema_of(columns), compression="zstd", use_dictionary=repeating)
