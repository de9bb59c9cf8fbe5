"""Try, where the server has a search index: under each answer the indexed pictures most like it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

import httpx2
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import ImageOps
from playwright.sync_api import Page, expect

from models.images.preprocessing import preprocess
from models.images.samples import draw, encode
from models.inference.image_job import ItemOutput
from models.interface.request import ImageLimits
from models.offline.running import Runner
from models.search.building import FeaturesFile, build
from models.serving.model_instance import ServingOptions
from observe.processes import gradless

Choose = Callable[[Page, Mapping[str, bytes]], None]

PICTURES = {
    "shop/clock one.jpg": encode(draw("clock"), "JPEG"),
    "shop/<b>mirrored.jpg": encode(ImageOps.mirror(draw("clock")), "JPEG"),
    "shop/crossword.jpg": encode(draw("crossword"), "JPEG"),
}


@pytest.fixture(scope="module", params=[True, False], ids=["with thumbnails", "without"])
def searching(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, warm_command: Any
) -> Iterator[str]:
    """Where the default model is served over an index of the pictures' features, the last without a thumbnail."""
    folder = tmp_path_factory.mktemp("index")
    thumbnails = dict(list(PICTURES.items())[:2]) if request.param else {}
    build(
        FeaturesFile(features_of(list(PICTURES.values()), folder / "f.parquet")),
        folder / "index",
        thumbnail=thumbnails.get,
    )
    settings = {"GRADLESS_BACKEND": "eager", "GRADLESS_SEARCH_INDEX": str(folder / "index")}
    with gradless(folder, settings, start=warm_command.start) as address:
        yield address


def features_of(pictures: list[bytes], path: Path) -> Path:
    """Return a features file of the served default model."""
    with closing(Runner(ServingOptions(backend="eager"), batch_size=len(pictures))) as runner:
        pixels = torch.stack([preprocess(picture, runner.model.transform, ImageLimits()) for picture in pictures])
        outputs = [output for output in runner.answer(pixels, top_k=0) if isinstance(output, ItemOutput)]
    vectors = np.stack([output.features for output in outputs])
    columns = {
        "path": list(PICTURES),
        "fingerprint": [runner.model.fingerprint] * len(pictures),
        "features": pa.FixedSizeListArray.from_arrays(pa.array(vectors.ravel()), vectors.shape[1]),
    }
    metadata = {"gradless.model": runner.model.name, "gradless.fingerprint": runner.model.fingerprint}
    pq.write_table(pa.table(columns).replace_schema_metadata(metadata), path)
    return path


def test_an_answer_shows_the_neighbours_of_the_api(
    open_page: Callable[..., Page], searching: str, choose: Choose, clock_png: bytes
) -> None:
    page = open_page(server=searching)
    choose(page, {"mine.png": clock_png})

    answered = httpx2.post(f"{searching}/v1/search", content=clock_png).json()["results"][0]["neighbours"]
    pictured = any(neighbour["thumbnail"] for neighbour in answered)
    rows = page.get_by_role("article", name="mine.png").locator(".alike li")
    expect(rows).to_have_count(3)
    for row, neighbour in zip(rows.all(), answered, strict=True):
        expect(row.locator(".figure")).to_have_text(f"{neighbour['similarity']:.3f}")
        expect(row.locator(".path")).to_have_text(neighbour["path"].removeprefix("shop/" if pictured else ""))
        assert row.get_attribute("title") == neighbour["path"]
        expect(row.locator("img")).to_have_count(int(neighbour["thumbnail"]))
    if pictured:
        expect(rows.first.locator("img")).to_have_js_property("naturalWidth", 400)
        expect(rows.last).to_contain_text("no preview")
    expect(page.get_by_role("button", name="Copy Neighbours")).to_be_visible()


def test_a_bad_picture_has_no_neighbours_and_the_others_have_theirs(
    open_page: Callable[..., Page], searching: str, choose: Choose, clock_png: bytes
) -> None:
    page = open_page(server=searching)
    choose(page, {"good.png": clock_png, "bad.png": b"no image", "again.png": clock_png})

    for name, count in {"again.png": 3, "good.png": 3, "bad.png": 0}.items():
        expect(page.get_by_role("article", name=name).locator(".alike li")).to_have_count(count)


def test_without_an_index_the_page_neither_requests_nor_shows_neighbours(
    try_page: Page, choose: Choose, clock_png: bytes
) -> None:
    requested: list[str] = []
    try_page.on("request", lambda request: requested.append(request.url))
    choose(try_page, {"mine.png": clock_png})

    expect(try_page.get_by_role("heading", name="The same from a shell")).to_be_visible()
    expect(try_page.locator("[aria-busy]")).to_have_count(0)
    expect(try_page.locator(".alike")).to_have_count(0)
    expect(try_page.get_by_role("button", name="Copy Neighbours")).to_have_count(0)
    assert not [url for url in requested if "/v1/search" in url]
