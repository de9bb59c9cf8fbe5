"""A server with a search index: it finds what was indexed, and does not start over an index that is not its model's."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx2
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import ImageOps

from models.images.samples import draw, encode
from models.search.building import FeaturesFile, build
from observe.processes import gradless as gradless_process

if TYPE_CHECKING:
    from tests.server.conftest import Server

MODEL = "shufflenet_v2_x0_5:random"
EAGER = {"GRADLESS_BACKEND": "eager", "GRADLESS_MODELS": MODEL}
PICTURES = {
    "clock.png": encode(draw("clock"), "PNG"),
    "mirrored.png": encode(ImageOps.mirror(draw("clock")), "PNG"),
    "crossword.png": encode(draw("crossword"), "PNG"),
}

StartServer = Callable[..., "Server"]
Run = Callable[..., subprocess.CompletedProcess[bytes]]


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory, warm_command: Any) -> Path:
    """Of the pictures, by the features that a server gives."""
    folder = tmp_path_factory.mktemp("index")
    with gradless_process(folder, EAGER, start=warm_command.start) as address:
        answers = [httpx2.post(f"{address}/v1/features", content=picture).json() for picture in PICTURES.values()]
    vectors = np.array([answer["results"][0]["features"] for answer in answers], np.float32)
    fingerprint = answers[0]["fingerprint"]
    columns = {
        "path": list(PICTURES),
        "fingerprint": [fingerprint] * len(PICTURES),
        "features": pa.FixedSizeListArray.from_arrays(pa.array(vectors.ravel()), vectors.shape[1]),
    }
    metadata = {"gradless.model": MODEL, "gradless.fingerprint": fingerprint}
    pq.write_table(pa.table(columns).replace_schema_metadata(metadata), folder / "f.parquet")
    thumbnails = dict(zip(PICTURES, (b"a clock's", None, b"a crossword's"), strict=True))
    build(FeaturesFile(folder / "f.parquet"), folder / "index", thumbnail=thumbnails.get)
    return folder / "index"


def images_counted(address: str) -> list[str]:
    lines = httpx2.get(f"{address}/metrics").text.splitlines()
    return [line for line in lines if line.startswith("gradless_images_total{") and not line.endswith(" 0.0")]


def test_a_server_finds_the_most_similar_indexed_pictures(start_server: StartServer, index: Path) -> None:
    address = start_server(**EAGER, GRADLESS_SEARCH_INDEX=str(index)).address

    found = httpx2.post(f"{address}/v1/search?k=3", content=PICTURES["mirrored.png"]).raise_for_status().json()
    files = [("images", (name, picture)) for name, picture in PICTURES.items()]
    several: Any = httpx2.post(f"{address}/v1/search?k=1", files=files).raise_for_status().json()["results"]

    neighbours = found["results"][0]["neighbours"]
    assert found["indexed"] == 3
    assert [neighbour["path"] for neighbour in neighbours] == ["mirrored.png", "clock.png", "crossword.png"]
    assert neighbours[0]["similarity"] == pytest.approx(1, abs=1e-5)
    assert [neighbour["thumbnail"] for neighbour in neighbours] == [False, True, True]
    assert [answer["neighbours"][0]["path"] for answer in several] == list(PICTURES)
    assert httpx2.get(f"{address}/v1/search/thumbnails/2").content == b"a crossword's"
    assert httpx2.get(f"{address}/v1/search/thumbnails/1").status_code == 404
    # Each image once, as a search and as nothing else.
    assert images_counted(address) == [f'gradless_images_total{{model="{MODEL}",outcome="ok",task="search"}} 4.0']


def test_a_server_of_another_model_refuses_the_index_in_one_line(gradless: Run, index: Path) -> None:
    refused = gradless("serve", GRADLESS_MODELS="null", GRADLESS_SEARCH_INDEX=str(index))

    assert f"its vectors are of {MODEL} (" in complaint(refused)


def test_a_folder_without_an_index_stops_the_start_in_one_line(gradless: Run, tmp_path: Path) -> None:
    refused = gradless("serve", GRADLESS_MODELS="null", GRADLESS_SEARCH_INDEX=str(tmp_path))

    assert "build one with `gradless search build`" in complaint(refused)


def complaint(done: subprocess.CompletedProcess[bytes]) -> str:
    """Return the one log line with the reason of a failed start."""
    assert done.returncode not in {0, None}
    printed = done.stderr.decode()
    assert "Traceback" not in printed
    (line,) = (line for line in printed.splitlines() if "cannot start" in line)
    return line
