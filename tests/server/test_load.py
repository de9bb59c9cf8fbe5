"""Many concurrent clients: none fails, they share batches, and no request affects another's answer."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from io import BytesIO
from typing import Any

import httpx2
import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from models.images.samples import draw, encode

CONNECTIONS = 32
ROUNDS = 4

LABELS = {"clock": "analog clock", "traffic-light": "traffic light", "crossword": "crossword puzzle"}

pytestmark = pytest.mark.anyio


@pytest.fixture
def pictures() -> list[tuple[str, bytes]]:
    """Each label that is expected, with the JPEG that shows it."""
    return [(label, encode(draw(sample), "JPEG")) for sample, label in LABELS.items()]  # type: ignore[arg-type]


def different_pictures(count: int) -> list[bytes]:
    """The clock on backgrounds of its own, seeded noise mixed in."""
    noise = np.random.default_rng(0)
    clock = np.asarray(draw("clock"), dtype=np.float32)
    mixed = [(clock + noise.uniform(0, 255, clock.shape)) / 2 for _ in range(count)]
    return [encode(Image.fromarray(pixels.astype(np.uint8)), "JPEG") for pixels in mixed]


def first_label(answer: httpx2.Response) -> str:
    label: str = answer.json()["results"][0]["predictions"][0]["label"]
    return label


async def test_thirty_two_connections_get_right_answers_without_one_error(
    server: Any, pictures: list[tuple[str, bytes]]
) -> None:
    async def one_client(number: int) -> None:
        # A client of its own is a connection of its own.
        async with httpx2.AsyncClient(base_url=server.address, timeout=60) as http:
            for round_number in range(ROUNDS):
                label, picture = pictures[(number + round_number) % len(pictures)]
                answer = await http.post("/v1/classify?top_k=1", content=picture)
                assert answer.status_code == 200, answer.text
                assert first_label(answer) == label

    async with asyncio.TaskGroup() as clients:
        for number in range(CONNECTIONS):
            clients.create_task(one_client(number))


async def test_concurrent_clients_share_batches(
    server: Any, clock_jpeg: bytes, metric_sum: Callable[..., float]
) -> None:
    async with httpx2.AsyncClient(base_url=server.address, timeout=60) as http:

        async def counted() -> NDArray[np.float64]:
            exposition = (await http.get("/metrics")).text
            return np.array([metric_sum(exposition, f"gradless_batch_size_{part}") for part in ("count", "sum")])

        before = await counted()
        await asyncio.gather(*(http.post("/v1/classify", content=clock_jpeg) for _ in range(CONNECTIONS)))
        batches, images = await counted() - before
        # A batch is counted after its requests are answered. The test's timeout is the deadline.
        while images < CONNECTIONS:
            batches, images = await counted() - before
    assert images == CONNECTIONS
    assert batches < images


async def test_a_bad_image_fails_alone_among_fifteen_good_ones(server: Any, clock_jpeg: bytes) -> None:
    cut_off = encode(draw("crossword"), "PNG")[:2000]
    async with httpx2.AsyncClient(base_url=server.address, timeout=60) as http:
        images = [clock_jpeg] * 7 + [cut_off] + [clock_jpeg] * 8
        answers = await asyncio.gather(*(http.post("/v1/classify", content=image) for image in images))
    bad = answers.pop(7)
    assert bad.status_code == 422
    assert bad.json()["type"] == "urn:gradless:problem:undecodable-image"
    assert {first_label(answer) for answer in answers} == {"analog clock"}


async def features(http: httpx2.AsyncClient, **body: Any) -> NDArray[np.float32]:
    answer = await http.post("/v1/features", headers={"Accept": "application/x-npy"}, **body)
    assert answer.status_code == 200, answer.text
    vectors: NDArray[np.float32] = np.load(BytesIO(answer.content), allow_pickle=False)
    return vectors


async def test_one_image_has_the_same_features_bit_for_bit_on_an_idle_server(server: Any, clock_jpeg: bytes) -> None:
    async with httpx2.AsyncClient(base_url=server.address, timeout=60) as http:
        first, second = await features(http, content=clock_jpeg), await features(http, content=clock_jpeg)
    assert first.tobytes() == second.tobytes()


async def test_an_image_among_thirty_two_has_the_features_it_has_alone(server: Any) -> None:
    images = different_pictures(32)
    files = [("images", (f"{number}.jpg", image, "image/jpeg")) for number, image in enumerate(images)]
    async with httpx2.AsyncClient(base_url=server.address, timeout=60) as http:
        alone = [(await features(http, content=images[place]))[0] for place in (0, 13, 31)]
        together = await features(http, files=files)
    assert together.shape == (32, 1280)
    for place, vector in zip((0, 13, 31), alone, strict=True):
        cosines = together @ vector / (np.linalg.norm(together, axis=1) * np.linalg.norm(vector))
        assert cosines[place] > 0.9999
        # And in its own place: no other picture is that near.
        assert cosines.argmax() == place
