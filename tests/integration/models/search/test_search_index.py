"""models/search: what is found are the nearest, and an index is there whole or not at all."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from models.interface.errors import JobError, SearchIndexError
from models.search.building import FeaturesFile, build
from models.search.index import SearchIndex

_FINGERPRINT = "0123456789abcdef"

Vectors = NDArray[np.float32]


def write_features(path: Path, vectors: Vectors, fingerprints: Sequence[str] | None = None, group: int = 7) -> Path:
    """As `gradless features` writes them, in row groups of `group`."""
    count, dimensions = vectors.shape
    columns = {
        "path": pa.array([f"{number}.jpg" for number in range(count)]),
        "fingerprint": pa.array(fingerprints or [_FINGERPRINT] * count).dictionary_encode(),
        "features": pa.FixedSizeListArray.from_arrays(pa.array(vectors.ravel()), dimensions),
    }
    metadata = {"gradless.model": "m", "gradless.fingerprint": _FINGERPRINT}
    pq.write_table(pa.table(columns).replace_schema_metadata(metadata), path, row_group_size=group)
    return path


def opened(folder: Path, vectors: Vectors, **options: int) -> SearchIndex:
    """An index of `vectors`, built and opened in `folder`."""
    build(FeaturesFile(write_features(folder / "f.parquet", vectors)), folder / "index", **options)
    return SearchIndex.open(folder / "index")


def random_vectors(count: int, dimensions: int, seed: int = 0) -> Vectors:
    """Return vectors in clusters without negative values, as after a network's last ReLU."""
    random = np.random.default_rng(seed)
    middles = random.normal(size=(20, dimensions))[random.integers(0, 20, count)]
    return np.maximum(0, middles + random.normal(size=(count, dimensions))).astype(np.float32)


def cosines(queries: Vectors, vectors: Vectors) -> NDArray[np.float64]:
    """(queries, vectors) float64, 0 where one of them has no direction."""
    lengths = [np.linalg.norm(each.astype(np.float64), axis=1) for each in (queries, vectors)]
    products = queries.astype(np.float64) @ vectors.astype(np.float64).T
    return products / np.where(outer := np.outer(*lengths), outer, 1)


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(count=st.integers(1, 40), dimensions=st.integers(1, 9), k=st.integers(1, 50), seed=st.integers(0, 99))
def test_a_small_index_finds_exactly_the_nearest_with_their_cosines(
    tmp_path: Path, count: int, dimensions: int, k: int, seed: int
) -> None:
    vectors, queries = random_vectors(count, dimensions, seed), random_vectors(3, dimensions, seed + 1)
    expected = cosines(queries, vectors)

    for row, found in enumerate(opened(tmp_path, vectors).search(queries, k)):
        similarities = [neighbour.similarity for neighbour in found]
        assert similarities == pytest.approx(np.sort(expected[row])[::-1][:k].tolist(), abs=1e-5)
        assert [expected[row][neighbour.row] for neighbour in found] == pytest.approx(similarities, abs=1e-5)
        assert [neighbour.path for neighbour in found] == [f"{neighbour.row}.jpg" for neighbour in found]


def test_a_large_index_finds_nearly_all_neighbours_and_measures_the_share(tmp_path: Path) -> None:
    vectors, queries = np.split(random_vectors(3100, 64), [3000])
    index = opened(tmp_path, vectors, exact_rows=0)
    nearest = np.argsort(-cosines(queries, vectors), axis=1)[:, :10]

    found = [{neighbour.row for neighbour in neighbours} for neighbours in index.search(queries, 10)]
    recall = np.mean([len(rows & set(exact)) / 10 for rows, exact in zip(found, nearest.tolist(), strict=True)])

    assert not index.manifest.exact
    assert index.manifest.recall >= 0.99
    assert recall >= 0.97


def test_a_vector_of_the_index_is_its_own_nearest_at_any_length(tmp_path: Path) -> None:
    vectors = random_vectors(50, 16)
    index = opened(tmp_path, vectors * np.float32(1e-20))

    for row, (first, *_) in enumerate(index.search(vectors * np.float32(1e15), 3)):
        assert first.row == row
        assert first.similarity == pytest.approx(1, abs=1e-6)
        assert first.similarity <= 1


def test_similarities_of_a_zero_vector_are_zero(tmp_path: Path) -> None:
    index = opened(tmp_path, np.array([[0, 0], [1, 0], [0, 2]], np.float32))

    assert [neighbour.similarity for neighbour in index.search(np.zeros((1, 2), np.float32), 3)[0]] == [0, 0, 0]
    assert [neighbour.similarity for neighbour in index.search(np.array([[0, 1]], np.float32), 3)[0]] == [1, 0, 0]


def test_an_open_index_stays_usable_after_its_folder_is_replaced(tmp_path: Path) -> None:
    old = opened(tmp_path, random_vectors(5, 4))
    new = opened(tmp_path, random_vectors(9, 4))

    assert (old.manifest.rows, new.manifest.rows) == (5, 9)
    assert len(old.search(random_vectors(1, 4), 100)[0]) == 5
    assert sorted(path.name for path in tmp_path.iterdir()) == ["f.parquet", "index"]


def test_a_failed_build_keeps_the_existing_index(tmp_path: Path) -> None:
    opened(tmp_path, random_vectors(20, 4))
    mixed = write_features(tmp_path / "g.parquet", random_vectors(20, 4), [_FINGERPRINT] * 19 + ["f" * 16])

    with pytest.raises(JobError, match=f"{_FINGERPRINT} and of f{{16}}, which cannot be compared"):
        build(FeaturesFile(mixed), tmp_path / "index")

    assert SearchIndex.open(tmp_path / "index").manifest.rows == 20
    assert sorted(path.name for path in tmp_path.iterdir()) == ["f.parquet", "g.parquet", "index"]


def test_a_folder_that_is_no_index_is_never_replaced(tmp_path: Path) -> None:
    (tmp_path / "index").mkdir()
    (tmp_path / "index" / "thesis.txt").touch()

    with pytest.raises(JobError, match="exists and is no search index"):
        opened(tmp_path, random_vectors(5, 4))

    assert (tmp_path / "index" / "thesis.txt").exists()


def _without(name: str) -> Callable[[Path], object]:
    return lambda folder: (folder / name).unlink()


def _with_manifest(**changed: object) -> Callable[[Path], object]:
    def change(folder: Path) -> None:
        manifest = json.loads((folder / "manifest.json").read_text())
        (folder / "manifest.json").write_text(json.dumps(manifest | changed))

    return change


def _flipped(name: str) -> Callable[[Path], object]:
    def flip(folder: Path) -> None:
        content = bytearray((folder / name).read_bytes())
        content[len(content) // 2] ^= 1
        (folder / name).write_bytes(content)

    return flip


@pytest.mark.parametrize(
    ("harm", "words"),
    [
        (_without("manifest.json"), "build one with `gradless search build`"),
        (_without("vectors.usearch"), "vectors.usearch cannot be read"),
        (_without("rows.arrow"), "rows.arrow cannot be read"),
        (_flipped("vectors.usearch"), "vectors.usearch was changed"),
        (_flipped("rows.arrow"), "rows.arrow was changed"),
        (lambda folder: (folder / "manifest.json").write_text("{"), "manifest.json cannot be read"),
        (lambda folder: (folder / "manifest.json").write_text("[]"), "its format is None"),
        (_with_manifest(format=2), "its format is 2"),
        (_with_manifest(rows="many"), "manifest.json was changed"),
        (_with_manifest(digests={"../secret": ""}), "manifest.json was changed"),
        (_with_manifest(rows=6), "do not belong together"),
        (_with_manifest(dimensions=5), "do not belong together"),
    ],
)
def test_a_broken_index_is_refused_in_one_line(tmp_path: Path, harm: Callable[[Path], object], words: str) -> None:
    opened(tmp_path, random_vectors(5, 4))
    harm(tmp_path / "index")

    with pytest.raises(SearchIndexError) as refused:
        SearchIndex.open(tmp_path / "index")

    assert words in str(refused.value)
    assert str(tmp_path / "index") in str(refused.value)
    assert "\n" not in str(refused.value)


def test_an_index_is_refused_for_another_model(tmp_path: Path) -> None:
    index = opened(tmp_path, random_vectors(5, 4))

    index.check_model({"other": "f" * 16, "mine": _FINGERPRINT})
    with pytest.raises(SearchIndexError, match=rf"of m \({_FINGERPRINT}\), and cannot be compared with those of other"):
        index.check_model({"other": "f" * 16})
