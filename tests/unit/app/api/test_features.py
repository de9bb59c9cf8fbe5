"""Feature vectors as numbers, base64 or a NumPy file, raw or normalized; and classes."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager
from io import BytesIO
from typing import Any

import httpx2
import numpy as np
import pytest
from pydantic_core import to_json

from models.interface import turns
from models.interface.errors import EmptyImageError
from models.interface.results import Answer, Prediction

pytestmark = pytest.mark.anyio

_NPY = {"Accept": "application/x-npy"}
_VECTORS = ((3.0, 0.0, 4.0), (0.1, -2.5, 1e-20), (0.0, 0.0, 0.0))
# Normalized to length 1; a zero vector is unchanged.
_UNIT = np.array([(0.6, 0.0, 0.8), (0.03996804, -0.99920096, 3.9968e-21), (0.0, 0.0, 0.0)], dtype=np.float32)

Serve = Callable[..., AbstractAsyncContextManager[httpx2.AsyncClient]]
Predict = Callable[..., Any]


@pytest.fixture
def three_vectors(prediction: Callable[..., Prediction], answer: Callable[..., Answer]) -> Predict:
    async def predict(*_arguments: object, **_options: object) -> Answer:
        return answer(*[prediction(0, vector) for vector in _VECTORS])

    return predict


def _decoded(results: Sequence[dict[str, str]]) -> np.ndarray:
    return np.array([np.frombuffer(base64.b64decode(result["features"]), dtype="<f4") for result in results])


async def test_features_are_numbers_with_the_name_of_their_model(serve: Serve, three_vectors: Predict) -> None:
    async with serve({"predict": three_vectors}) as client:
        body = (await client.post("/v1/features", content=b"image")).json()

    assert (body["model"], body["fingerprint"], body["dimensions"]) == ("fake", "0123456789abcdef", 3)
    found = np.array([result["features"] for result in body["results"]], dtype=np.float32)
    assert np.array_equal(found, np.array(_VECTORS, dtype=np.float32))


async def test_features_as_a_numpy_file_are_a_float32_array_with_the_model_in_its_headers(
    serve: Serve, three_vectors: Predict
) -> None:
    async with serve({"predict": three_vectors}) as client:
        response = await client.post("/v1/features", content=b"image", headers=_NPY)

    assert response.headers["content-type"] == "application/x-npy"
    assert response.headers["x-gradless-model"] == "fake"
    assert response.headers["x-gradless-fingerprint"] == "0123456789abcdef"
    found = np.load(BytesIO(response.content), allow_pickle=False)
    assert found.dtype == np.float32
    assert np.array_equal(found, np.array(_VECTORS, dtype=np.float32))


async def test_normalized_vectors_have_length_one_in_every_encoding(serve: Serve, three_vectors: Predict) -> None:
    async with serve({"predict": three_vectors}) as client:
        listed = (await client.post("/v1/features?normalize=true", content=b"image")).json()["results"]
        encoded = (await client.post("/v1/features?normalize=true&encoding=base64", content=b"image")).json()["results"]
        file = (await client.post("/v1/features?normalize=true", content=b"image", headers=_NPY)).content

    for found in (
        np.array([result["features"] for result in listed]),
        _decoded(encoded),
        np.load(BytesIO(file), allow_pickle=False),
    ):
        assert np.allclose(found, _UNIT, rtol=1e-5, atol=0)


@pytest.mark.parametrize("magnitude", [1e-30, 1e30])
async def test_vectors_of_any_magnitude_are_normalized_to_length_one(
    serve: Serve, prediction: Callable[..., Prediction], answer: Callable[..., Answer], magnitude: float
) -> None:
    async def predict(*_arguments: object, **_options: object) -> Answer:
        return answer(prediction(0, (3 * magnitude, 0.0, 4 * magnitude)))

    async with serve({"predict": predict}) as client:
        body = (await client.post("/v1/features?normalize=true", content=b"image")).json()

    assert body["results"][0]["features"] == pytest.approx([0.6, 0.0, 0.8])


async def test_normalizing_does_not_change_the_vectors_of_the_runtime(
    serve: Serve, prediction: Callable[..., Prediction], answer: Callable[..., Answer]
) -> None:
    stored = prediction(0, (3.0, 0.0, 4.0))

    async def predict(*_arguments: object, **_options: object) -> Answer:
        return answer(stored)

    async with serve({"predict": predict}) as client:
        await client.post("/v1/features?normalize=true", content=b"image")

    assert stored.features.tolist() == [3.0, 0.0, 4.0]


async def test_an_invalid_image_fails_the_request_for_a_numpy_file(
    serve: Serve, prediction: Callable[..., Prediction], answer: Callable[..., Answer]
) -> None:
    async def predict(*_arguments: object, **_options: object) -> Answer:
        return answer(prediction(), EmptyImageError(), prediction())

    async with serve({"predict": predict}) as client:
        response = await client.post("/v1/features", content=b"image", headers=_NPY)

    assert response.status_code == 422
    assert response.json()["type"] == "urn:gradless:problem:empty-image"


async def test_each_image_has_a_list_of_classes_most_probable_first(
    serve: Serve, multipart: Callable[..., tuple[dict[str, str], bytes]]
) -> None:
    headers, body = multipart(b"a", b"b")
    async with serve() as client:
        found = (await client.post("/v1/classify?top_k=2", content=body, headers=headers)).json()

    expected = [
        {"index": 0, "label": "class 0", "probability": 0.5},
        {"index": 1, "label": "class 1", "probability": 0.25},
    ]
    assert found == {
        "model": "fake",
        "fingerprint": "0123456789abcdef",
        "results": [{"predictions": expected}, {"predictions": expected}],
    }


@pytest.mark.parametrize("path", ["/v1/classify", "/v1/features", "/v1/predict", "/v1/features?encoding=base64"])
async def test_several_results_are_the_json_of_each_and_one_is_that_of_the_whole(
    serve: Serve, prediction: Callable[..., Prediction], answer: Callable[..., Answer], path: str
) -> None:
    results = [prediction(2, vector) for vector in _VECTORS]
    results.insert(1, EmptyImageError())
    bodies = []
    for made in (results, *([each] for each in results[::2])):

        async def predict(*_arguments: object, made: list[Any] = made, **_options: object) -> Answer:
            return answer(*made)

        async with serve({"predict": predict}) as client:
            bodies.append(await client.post(path, content=b"image"))

    several, *alone = (body.json() for body in bodies)
    assert [several["results"][at] for at in (0, 2)] == [body["results"][0] for body in alone]
    assert "empty" in several["results"][1]["error"]["type"]
    assert {**several, "results": []} == {**alone[0], "results": []}
    # Also to the byte: without spaces.
    assert bodies[0].content == to_json(several)


async def test_only_the_first_ranges_of_accept_are_read(serve: Serve, three_vectors: Predict) -> None:
    async with serve({"predict": three_vectors}) as client:
        near = await client.post("/v1/features", content=b"image", headers={"Accept": f"{',' * 30}application/x-npy"})
        far = await client.post("/v1/features", content=b"image", headers={"Accept": f"{',' * 40}application/x-npy"})
    assert near.headers["content-type"] == "application/x-npy"
    assert far.headers["content-type"] == "application/json"


@pytest.mark.parametrize("path", ["/v1/classify", "/v1/features", "/v1/predict"])
async def test_other_requests_have_turns_while_many_results_become_bodies_and_json(
    serve: Serve,
    prediction: Callable[..., Prediction],
    answer: Callable[..., Answer],
    monkeypatch: pytest.MonkeyPatch,
    path: str,
) -> None:
    monkeypatch.setattr(turns, "_TURN_S", -1.0)
    results, laps = 100, 0

    async def predict(*_arguments: object, **_options: object) -> Answer:
        nonlocal laps
        laps = 0
        return answer(*[prediction() for _ in range(results)])

    async def other() -> None:
        nonlocal laps
        while True:
            laps += 1
            await asyncio.sleep(0)

    async with serve({"predict": predict}) as client:
        task = asyncio.create_task(other())
        await client.post(path, content=b"image")
        task.cancel()
    # Of each result first the body, then its JSON.
    assert laps >= 2 * results
