"""POST /v1/predict: classes and features of one forward, in JSON or as a NumPy archive."""

from __future__ import annotations

import base64
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from io import BytesIO
from typing import Any

import httpx2
import numpy as np
import pytest

from models.interface.errors import EmptyImageError
from models.interface.request import InferenceRequest
from models.interface.results import Answer, Prediction

pytestmark = pytest.mark.anyio

Serve = Callable[..., AbstractAsyncContextManager[httpx2.AsyncClient]]
Multipart = Callable[..., tuple[dict[str, str], bytes]]

_PATH = "/v1/predict"
_NPZ = {"Accept": "application/x-npz"}
_CLASSES = [
    {"index": 0, "label": "class 0", "probability": 0.5},
    {"index": 1, "label": "class 1", "probability": 0.25},
]


@pytest.fixture
def noted() -> list[InferenceRequest]:
    """The requests that the runtime gets."""
    return []


@pytest.fixture
def runtime(
    noted: list[InferenceRequest], prediction: Callable[..., Prediction], answer: Callable[..., Answer]
) -> dict[str, Any]:
    """Options of a runtime in which an image without bytes is at fault."""

    async def infer(_model: str | None, request: InferenceRequest) -> Answer:
        noted.append(request)
        return answer(*[prediction(request.top_k) if image else EmptyImageError() for image in request.images])

    return {"predict": infer}


async def test_one_request_to_the_runtime_gives_classes_and_features(
    serve: Serve, runtime: dict[str, Any], noted: list[InferenceRequest], multipart: Multipart
) -> None:
    headers, body = multipart(b"a", b"b")
    async with serve(runtime) as client:
        found = (await client.post(f"{_PATH}?top_k=2", content=body, headers=headers)).json()

    assert [(request.task, request.top_k, len(request.images)) for request in noted] == [("classify", 2, 2)]
    assert found == {
        "model": "fake",
        "fingerprint": "0123456789abcdef",
        "dimensions": 3,
        "shape": [3],
        "results": [{"predictions": _CLASSES, "features": [3.0, 0.0, 4.0]}] * 2,
    }


@pytest.mark.parametrize(
    ("outputs", "asked", "named"),
    [
        ("classes", ("classify", 5), {"predictions"}),
        ("features", ("features", 0), {"features"}),
        ("classes,features", ("classify", 5), {"predictions", "features"}),
        ("features,classes", ("classify", 5), {"predictions", "features"}),
    ],
)
async def test_the_query_chooses_the_outputs(
    serve: Serve,
    runtime: dict[str, Any],
    noted: list[InferenceRequest],
    outputs: str,
    asked: tuple[str, int],
    named: set[str],
) -> None:
    async with serve(runtime) as client:
        answered = await client.post(f"{_PATH}?outputs={outputs}", content=b"image")
        archive = await client.post(f"{_PATH}?outputs={outputs}", content=b"image", headers=_NPZ)

    [result] = answered.json()["results"]
    assert {name for name, value in result.items() if value is not None} == named
    assert [(request.task, request.top_k) for request in noted] == [asked] * 2
    arrays = np.load(BytesIO(archive.content), allow_pickle=False)
    assert ("features" in arrays, "indices" in arrays) == ("features" in named, "predictions" in named)


@pytest.mark.parametrize("outputs", ["", "logits", "classes,classes", "classes,", "classes features"])
async def test_unknown_outputs_are_refused(serve: Serve, outputs: str) -> None:
    async with serve() as client:
        response = await client.post(_PATH, params={"outputs": outputs}, content=b"image")

    assert (response.status_code, response.json()["type"]) == (422, "urn:gradless:problem:invalid-parameter")
    assert "outputs" in response.json()["detail"]


async def test_vectors_are_normalized_and_encoded_as_those_of_features(serve: Serve) -> None:
    async with serve() as client:
        query = "?normalize=true&encoding=base64"
        [predicted] = (await client.post(f"{_PATH}{query}", content=b"image")).json()["results"]
        [featured] = (await client.post(f"/v1/features{query}", content=b"image")).json()["results"]

    assert predicted["features"] == featured["features"]
    assert np.frombuffer(base64.b64decode(predicted["features"]), "<f4") == pytest.approx([0.6, 0, 0.8])


async def test_a_numpy_archive_has_an_array_for_each_number_and_label(
    serve: Serve, runtime: dict[str, Any], multipart: Multipart
) -> None:
    headers, body = multipart(b"a", b"b", b"c")
    async with serve(runtime) as client:
        response = await client.post(f"{_PATH}?top_k=2&normalize=true", content=body, headers=headers | _NPZ)

    assert response.headers["content-type"] == "application/x-npz"
    assert response.headers["x-gradless-model"] == "fake"
    assert response.headers["x-gradless-fingerprint"] == "0123456789abcdef"
    assert response.headers["x-gradless-shape"] == "3"
    arrays = np.load(BytesIO(response.content), allow_pickle=False)
    assert arrays["indices"].tolist() == [[0, 1]] * 3
    assert arrays["labels"].tolist() == [["class 0", "class 1"]] * 3
    assert arrays["probabilities"].tolist() == [[0.5, 0.25]] * 3
    np.testing.assert_allclose(arrays["features"], [[0.6, 0, 0.8]] * 3, rtol=1e-6)
    assert [arrays[name].dtype for name in ("indices", "probabilities", "features")] == [np.int64, "f4", "f4"]


async def test_an_invalid_image_has_its_error_in_json_and_fails_an_archive(
    serve: Serve, runtime: dict[str, Any], multipart: Multipart
) -> None:
    headers, body = multipart(b"a", b"", b"c")
    async with serve(runtime) as client:
        answered = await client.post(_PATH, content=body, headers=headers)
        archive = await client.post(_PATH, content=body, headers=headers | _NPZ)

    slugs = [result.get("error", {}).get("type") for result in answered.json()["results"]]
    assert slugs == [None, "urn:gradless:problem:empty-image", None]
    assert (archive.status_code, archive.json()["type"]) == (422, "urn:gradless:problem:empty-image")
