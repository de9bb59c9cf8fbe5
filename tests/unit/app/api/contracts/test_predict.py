"""The routes of TorchServe, KServe v1 and SageMaker: the bodies that their documents show, answers and errors."""

from __future__ import annotations

import base64
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from typing import Any

import httpx2
import pytest

from models.interface.errors import OverloadedError, UndecodableImageError
from models.interface.request import InferenceRequest
from models.interface.results import Answer, Prediction, ScoredClass

pytestmark = pytest.mark.anyio

Serve = Callable[..., AbstractAsyncContextManager[httpx2.AsyncClient]]

_KEYS = {"api_keys": "inference:key-of-an-inferrer"}
_TORCHSERVE, _KSERVE, _SAGEMAKER = "/predictions/fake", "/v1/models/fake:predict", "/invocations"
_ROUTES = [_TORCHSERVE, _KSERVE, _SAGEMAKER]


def _b64(image: bytes) -> str:
    return base64.b64encode(image).decode()


class _Recorder:
    """A runtime's `predict` that records the images of the last request, and fails for the image `bad`."""

    def __init__(self, prediction: Callable[..., Prediction]) -> None:
        self.images: list[Any] = []
        self._prediction = prediction

    async def predict(self, model: str | None, request: InferenceRequest) -> Answer:
        self.images = list(request.images)
        fault = UndecodableImageError("PNG", "it is cut short")
        results = [fault if image == b"bad" else self._prediction(request.top_k) for image in request.images]
        return Answer(model or "fake", "0123456789abcdef", 3, (3,), results, 1)


@pytest.fixture
def recorder(prediction: Callable[..., Prediction]) -> _Recorder:
    return _Recorder(prediction)


def _scores(top_k: int) -> dict[str, float]:
    """Return the answer for one image of the fake model."""
    return {f"class {index}": 0.5 / (index + 1) for index in range(top_k)}


@pytest.mark.parametrize("path", [_TORCHSERVE, f"{_TORCHSERVE}/1.0", "/predictions/fake%40pixels/1"])
@pytest.mark.parametrize(
    ("method", "body"),
    [
        ("POST", {"content": b"image"}),
        ("PUT", {"content": b"image"}),
        ("POST", {"files": {"data": b"image"}}),
        # Without a file name, as perf_analyzer sends it.
        ("POST", {"files": {"data": (None, b"image")}}),
        ("POST", {"json": {"data": _b64(b"image")}}),
        ("POST", {"json": {"body": {"b64": _b64(b"image")}}}),
    ],
)
async def test_torchserve_answers_one_image_with_its_five_likeliest_classes(
    serve: Serve, recorder: _Recorder, path: str, method: str, body: dict[str, Any]
) -> None:
    async with serve({"predict": recorder.predict}) as client:
        response = await client.request(method, path, **body)

    assert recorder.images == [b"image"]
    assert (response.status_code, response.headers["content-type"]) == (200, "application/json")
    assert list(response.json().items()) == list(_scores(5).items())


@pytest.mark.parametrize(
    "body",
    [
        {"files": [("a", b"one"), ("b", (None, b"two"))]},
        {"json": {"data": [_b64(b"one"), _b64(b"two")]}},
        {"json": {"body": [{"b64": _b64(b"one")}, {"b64": _b64(b"two")}]}},
    ],
)
async def test_torchserve_answers_several_images_with_a_list(
    serve: Serve, recorder: _Recorder, body: dict[str, Any]
) -> None:
    async with serve({"predict": recorder.predict}) as client:
        response = await client.post(_TORCHSERVE, **body)

    assert recorder.images == [b"one", b"two"]
    assert response.json() == [_scores(5), _scores(5)]


_ONE, _TWO = _b64(b"one"), _b64(b"two")


@pytest.mark.parametrize(
    "body",
    [
        {"instances": [_ONE, _TWO]},
        {"instances": [{"b64": _ONE}, {"data": _TWO}]},
        {"instances": [{"image": {"b64": _ONE}, "id": 7}, {"image_bytes": {"b64": _TWO}}]},
        {"instances": [{"photo": _ONE}, {"input": f"data:image/png;base64,{_TWO}"}], "signature_name": "any"},
        {"inputs": [_ONE, _TWO]},
        {"inputs": {"image": [{"b64": _ONE}, {"b64": _TWO}]}},
        {"dataframe_split": {"index": [0, 1], "columns": ["image"], "data": [[_ONE], [_TWO]]}},
        {"dataframe_records": [{"image": _ONE}, {"image": _TWO}]},
    ],
)
async def test_lists_of_instances_are_answered_under_predictions(
    serve: Serve, recorder: _Recorder, body: dict[str, Any]
) -> None:
    async with serve({"predict": recorder.predict}) as client:
        for path in (*_ROUTES, "/v1/models/fake/versions/1:predict"):
            response = await client.post(path, json=body)
            assert recorder.images == [b"one", b"two"]
            assert response.json() == {"predictions": [_scores(5), _scores(5)]}, path


async def test_one_image_under_inputs_is_a_list_of_one(serve: Serve, recorder: _Recorder) -> None:
    async with serve({"predict": recorder.predict}) as client:
        response = await client.post(_SAGEMAKER, json={"inputs": _ONE})

    assert response.json() == {"predictions": [_scores(5)]}


@pytest.mark.parametrize("path", [_KSERVE, _SAGEMAKER, "/invocations?model=fake"])
@pytest.mark.parametrize("content_type", ["image/jpeg", "application/x-www-form-urlencoded", "application/json"])
async def test_a_file_is_taken_whatever_its_content_type(
    serve: Serve, recorder: _Recorder, path: str, content_type: str
) -> None:
    async with serve({"predict": recorder.predict}) as client:
        response = await client.post(path, content=b"image", headers={"Content-Type": content_type})

    assert recorder.images == [b"image"]
    assert response.json() == {"predictions": [_scores(5)]}


@pytest.mark.parametrize(("parameters", "top_k"), [({"top_k": 2}, 2), ({"top_k": None}, 5), ({}, 5), (None, 5)])
async def test_the_number_of_classes_is_a_parameter(serve: Serve, parameters: Any, top_k: int) -> None:
    async with serve() as client:
        for path in _ROUTES:
            response = await client.post(path, json={"instances": [_ONE], "parameters": parameters})
            assert response.json() == {"predictions": [_scores(top_k)]}, path


@pytest.mark.parametrize("top_k", [0, 1001, True, 1.5, "3", [2]])
async def test_another_number_of_classes_is_refused(serve: Serve, top_k: Any) -> None:
    async with serve() as client:
        response = await client.post(_KSERVE, json={"instances": [_ONE], "parameters": {"top_k": top_k}})

    assert (response.status_code, response.json()) == (400, {"error": "top_k must be a whole number from 1 to 1000."})


async def test_of_two_classes_with_one_label_the_likelier_counts(
    serve: Serve, prediction: Callable[..., Prediction], answer: Callable[..., Answer]
) -> None:
    found = prediction()
    cranes = tuple(ScoredClass(*scored) for scored in [(134, "crane", 0.5), (3, "hen", 0.3), (517, "crane", 0.2)])
    of_cranes = Prediction(cranes, found.features, found.started_at, found.seconds, found.batch)

    async def predict(*_: object) -> Answer:
        return answer(of_cranes)

    async with serve({"predict": predict}) as client:
        assert (await client.post(_TORCHSERVE, content=b"image")).json() == {"crane": 0.5, "hen": 0.3}


@pytest.mark.parametrize(
    ("path", "body", "expected"),
    [
        ("/predictions/fake@features", {"content": b"image"}, [3.0, 0.0, 4.0]),
        ("/v1/models/fake@features:predict", {"json": {"instances": [_ONE]}}, {"predictions": [[3.0, 0.0, 4.0]]}),
        ("/invocations?model=fake%40features", {"content": b"image"}, {"predictions": [[3.0, 0.0, 4.0]]}),
    ],
)
async def test_features_are_lists_of_numbers(serve: Serve, path: str, body: dict[str, Any], expected: object) -> None:
    async with serve() as client:
        assert (await client.post(path, **body)).json() == expected


@pytest.mark.parametrize("name", ["timm/resnet18", "resnet50:random", "a:predict:b"])
async def test_names_with_slashes_and_colons_are_found(serve: Serve, name: str) -> None:
    async with serve({"names": ("fake", name)}) as client:
        for path in (f"/predictions/{name}", f"/predictions/{name}/1", f"/v1/models/{name}:predict"):
            assert (await client.post(path, content=b"image")).status_code == 200


@pytest.mark.parametrize(
    "body",
    [
        b"[]",
        b'{"instances": "AAAA"}',
        b'{"instances": []}',
        b'{"instances": [], "inputs": []}',
        b'{"instances": [3]}',
        b'{"instances": ["https://example.org/cat.jpg"]}',
        b'{"instances": [{"data": "AAAA", "image": "AAAA"}]}',
        b'{"instances": [{"left": "AAAA", "right": "AAAA"}]}',
        b'{"instances": ["AAAA"], "parameters": "all"}',
        b'{"dataframe_split": {"columns": ["a", "b"], "data": [["AAAA", "AAAA"]]}}',
        b"{}",
        b'{"instances": [',
    ],
)
async def test_json_without_images_is_a_bad_request(serve: Serve, body: bytes) -> None:
    async with serve() as client:
        answers = [await client.post(path, content=body) for path in _ROUTES]

    assert {(each.status_code, each.headers["content-type"]) for each in answers} == {(400, "application/json")}
    torchserve, *others = (each.json() for each in answers)
    assert torchserve["type"] == "BadRequestException"
    assert all(told.keys() == {"error"} for told in others)


@pytest.mark.parametrize("path", _ROUTES)
async def test_an_image_at_fault_is_named_by_its_position(serve: Serve, recorder: _Recorder, path: str) -> None:
    async with serve({"predict": recorder.predict}) as client:
        response = await client.post(path, json={"instances": [_ONE, _b64(b"bad")]})

    assert response.status_code == 400
    assert response.json().get("message", response.json().get("error")).startswith("image 1: ")


async def _overloaded(*_: object) -> Answer:
    raise OverloadedError(1, 3)


async def _broken(*_: object) -> Answer:
    raise RuntimeError("secret")


async def test_errors_have_the_form_of_torchserve(serve: Serve) -> None:
    async def told(client: httpx2.AsyncClient, method: str, path: str, **options: Any) -> tuple[int, str]:
        response = await client.request(method, path, **options)
        error = response.json()
        assert response.headers["content-type"] == "application/json"
        assert error.keys() == {"code", "type", "message"}
        assert error["code"] == response.status_code
        return error["code"], error["type"]

    image = {"content": b"image"}
    async with serve({"predict": _overloaded}, max_request_bytes=1000, max_image_bytes=900) as client:
        unknown = await client.post("/predictions/nobody", content=b"image")
        assert unknown.json() == {
            "code": 404,
            "type": "ModelNotFoundException",
            "message": "Model not found: nobody",
        }
        assert await told(client, "POST", f"{_TORCHSERVE}/2", **image) == (404, "ModelVersionNotFoundException")
        assert await told(client, "GET", "/models/nobody") == (404, "ModelNotFoundException")
        assert await told(client, "GET", "/models/fake/2") == (404, "ModelVersionNotFoundException")
        assert await told(client, "GET", _TORCHSERVE) == (405, "MethodNotAllowedException")
        assert await told(client, "POST", "/models?url=a.mar") == (405, "MethodNotAllowedException")
        assert await told(client, "PUT", "/models/fake?min_worker=2") == (405, "MethodNotAllowedException")
        assert await told(client, "DELETE", "/models/fake") == (405, "MethodNotAllowedException")
        assert await told(client, "POST", _TORCHSERVE, content=bytes(2000)) == (413, "BadRequestException")
        assert await told(client, "POST", _TORCHSERVE, content=bytes(950)) == (413, "BadRequestException")
        pinned = {"headers": {"If-Match": "another"}, **image}
        assert await told(client, "POST", _TORCHSERVE, **pinned) == (412, "ConflictStatusException")
        assert await told(client, "POST", _TORCHSERVE, **image) == (429, "ServiceUnavailableException")
    async with serve({"predict": _broken}) as client:
        assert await told(client, "POST", _TORCHSERVE, **image) == (500, "InternalServerException")
    async with serve({"ready": False}) as client:
        assert await told(client, "POST", _TORCHSERVE, **image) == (503, "ServiceUnavailableException")
    async with serve(**_KEYS) as client:
        assert await told(client, "POST", _TORCHSERVE, **image) == (401, "InvalidKeyException")
        assert await told(client, "GET", "/models") == (401, "InvalidKeyException")
    async with serve(api_keys="metrics:key-of-a-scraper") as client:
        headers = {"X-API-Key": "key-of-a-scraper"}
        assert await told(client, "POST", _TORCHSERVE, headers=headers, **image) == (403, "InvalidKeyException")


async def test_ping_tells_without_a_key_whether_the_service_is_ready(serve: Serve) -> None:
    async with serve(**_KEYS) as client:
        healthy = await client.get("/ping")
    async with serve({"ready": False}) as client:
        unhealthy = await client.get("/ping")

    assert (healthy.status_code, healthy.json()) == (200, {"status": "Healthy"})
    assert (unhealthy.status_code, unhealthy.json()) == (503, {"status": "Unhealthy"})


async def test_torchserve_lists_and_describes_the_models(serve: Serve) -> None:
    async with serve({"names": ("fake", "timm/other"), "down": frozenset({"timm/other"})}) as client:
        listed = await client.get("/models")
        described = [(await client.get(f"/models/{name}")).json()[0] for name in ("fake@features/1.0", "timm/other")]

    assert listed.json() == {
        "models": [{"modelName": name, "modelUrl": name} for name in ("fake", "timm/other")],
    }
    assert described[0] == {
        "modelName": "fake@features",
        "modelVersion": "1.0",
        "modelUrl": "fake",
        "engine": "Torch",
        "runtime": "python",
        "minWorkers": 1,
        "maxWorkers": 1,
        "batchSize": 8,
        "maxBatchDelay": 0,
        "workers": [{"id": "1", "status": "READY"}],
        "jobQueueStatus": {"remainingCapacity": 15, "pendingRequests": 2},
    }
    assert [worker["status"] for worker in described[1]["workers"]] == ["UNLOADING"]


async def test_kserve_reads_from_a_models_description_whether_it_is_ready(serve: Serve) -> None:
    async with serve({"names": ("fake", "other"), "down": frozenset({"other"})}) as client:
        ready = [(await client.get(f"/v1/models/{name}")).json()["ready"] for name in ("fake", "other")]

        view = (await client.get("/v1/models/other@features")).json()
        unknown = await client.get("/v1/models/fake@nothing")

    assert ready == [True, False]
    assert (view["id"], view["name"], view["ready"]) == ("other@features", "other", False)
    assert unknown.status_code == 404
