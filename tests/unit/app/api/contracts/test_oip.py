"""The Open Inference Protocol besides inference: probes, metadata, configuration, repository, statistics."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from typing import Any

import httpx2
import pytest

from models.interface.errors import LastModelError, ModelNotLoadedError, UndecodableImageError
from models.interface.request import InferenceRequest
from models.interface.results import Answer, Loaded, Prediction

pytestmark = pytest.mark.anyio

Serve = Callable[..., AbstractAsyncContextManager[httpx2.AsyncClient]]

_VIEWS = ["fake", "fake@pixels", "fake@tensor", "fake@features", "fake@pixels@features", "fake@tensor@features"]


def _status(response: httpx2.Response) -> int:
    """Return the status of an error in the form of the protocol."""
    assert response.headers["content-type"] == "application/json"
    assert isinstance(response.json()["error"], str)
    return response.status_code


@pytest.mark.parametrize("path", ["/v2", "/v2/"])
async def test_the_server_names_its_extensions(serve: Serve, path: str) -> None:
    async with serve() as client:
        described = (await client.get(path)).json()

    assert described["name"] == "gradless"
    assert described["extensions"] == [
        "binary_tensor_data",
        "classification",
        "model_configuration",
        "model_repository",
        "parameters",
        "statistics",
    ]


async def test_probes_say_whether_the_service_is_live_and_ready(serve: Serve) -> None:
    async with serve() as client:
        assert (await client.get("/v2/health/live")).json() == {"live": True}
        assert (await client.get("/v2/health/ready")).json() == {"ready": True}
        assert (await client.get("/v2/models/fake/ready")).json() == {"name": "fake", "ready": True}
    async with serve({"ready": False}) as client:
        assert (await client.get("/v2/health/live")).json() == {"live": True}
        not_ready = await client.get("/v2/health/ready")
        assert _status(await client.get("/v2/models/fake/ready")) == 503
    async with serve({"down": frozenset({"fake"})}) as client:
        assert _status(await client.get("/v2/models/fake/ready")) == 503
        index = (await client.post("/v2/repository/index")).json()

    assert (_status(not_ready), not_ready.json()["ready"]) == (503, False)
    assert {model["state"] for model in index} == {"UNAVAILABLE"}


async def test_probes_need_no_key_and_no_host_and_all_else_does(serve: Serve) -> None:
    elsewhere = {"Host": "elsewhere.example"}
    closed = ["/v2", "/v2/models/fake", "/v2/models/fake/ready", "/v2/models/stats", "/v2/logging"]
    async with serve(api_keys="metrics:key-of-a-collector", allowed_hosts=("localhost",)) as client:
        for path in ("/v2/health/live", "/v2/health/ready"):
            assert (await client.get(path, headers=elsewhere)).status_code == 200
        assert {path: _status(await client.get(path)) for path in closed} == dict.fromkeys(closed, 401)
        key = {"X-API-Key": "key-of-a-collector"}
        assert _status(await client.get("/v2/models/fake", headers=key)) == 403
        assert _status(await client.post("/v2/repository/index")) == 401
        assert _status(await client.post("/v2/repository/models/fake/load", headers=key)) == 403
        assert _status(await client.post("/v2/repository/models/fake/unload", headers=key)) == 403


@pytest.mark.parametrize(
    ("view", "input_", "output"),
    [
        ("fake", ("BYTES", [-1, 1]), ("probabilities", [-1, 10])),
        ("fake@pixels", ("UINT8", [-1, 3, 32, 32]), ("probabilities", [-1, 10])),
        ("fake@tensor", ("FP32", [-1, 3, 32, 32]), ("probabilities", [-1, 10])),
        ("fake@pixels@features", ("UINT8", [-1, 3, 32, 32]), ("features", [-1, 3])),
    ],
)
@pytest.mark.parametrize("version", ["", "/versions/1"])
async def test_a_view_has_one_input_and_one_output(
    serve: Serve, view: str, input_: tuple[str, list[int]], output: tuple[str, list[int]], version: str
) -> None:
    async with serve() as client:
        found = (await client.get(f"/v2/models/{view}{version}")).json()

    assert (found["name"], found["versions"], found["platform"]) == (view, ["1"], "gradless_pytorch")
    assert found["inputs"] == [{"name": "image", "datatype": input_[0], "shape": input_[1]}]
    assert found["outputs"] == [{"name": output[0], "datatype": "FP32", "shape": output[1]}]
    assert found["properties"] == {
        "fingerprint": "0123456789abcdef",
        "mean": "0.5,0.5,0.5",
        "std": "0.25,0.25,0.25",
        "layout": "NCHW or NHWC, RGB",
        "views": ", ".join(_VIEWS),
    }


async def test_a_configuration_leaves_out_the_dimension_of_the_batch(serve: Serve) -> None:
    async with serve() as client:
        pixels = (await client.get("/v2/models/fake%40pixels/versions/1/config")).json()
        files = (await client.get("/v2/models/fake@features/config")).json()

    assert pixels == {
        "name": "fake@pixels",
        "platform": "gradless_pytorch",
        "backend": "gradless",
        "version_policy": {"latest": {"num_versions": 1}},
        "max_batch_size": 64,
        "input": [
            {
                "name": "image",
                "data_type": "TYPE_UINT8",
                "format": "FORMAT_NCHW",
                "dims": [3, 32, 32],
                "optional": False,
            }
        ],
        "output": [{"name": "probabilities", "data_type": "TYPE_FP32", "dims": [10], "label_filename": "labels.txt"}],
        "dynamic_batching": {},
    }
    assert files["input"] == [
        {"name": "image", "data_type": "TYPE_STRING", "format": "FORMAT_NONE", "dims": [1], "optional": False}
    ]
    assert files["output"] == [{"name": "features", "data_type": "TYPE_FP32", "dims": [3]}]


async def test_names_with_slashes_are_found(serve: Serve) -> None:
    names = ("timm/resnet18", "timm/resnet18/stats")
    async with serve({"names": names}) as client:
        for name in (*names, "timm/resnet18@pixels"):
            assert (await client.get(f"/v2/models/{name}")).json()["name"] == name
            assert (await client.get(f"/v2/models/{name.replace('/', '%2F')}/ready")).json()["name"] == name
        config = (await client.get("/v2/models/timm/resnet18/versions/1/config")).json()

    assert config["name"] == "timm/resnet18"


async def test_the_index_lists_all_views(serve: Serve) -> None:
    async with serve() as client:
        for body in (b"", b'{"ready": true}', b'{"repository_name": "x"}'):
            index = (await client.post("/v2/repository/index", content=body)).json()
            assert index == [{"name": view, "version": "1", "state": "READY", "reason": ""} for view in _VIEWS]
    async with serve({"down": frozenset({"fake"})}) as client:
        assert (await client.post("/v2/repository/index", json={"ready": True})).json() == []


async def test_models_are_loaded_by_their_name_and_unloaded(serve: Serve) -> None:
    changes: list[Any] = []

    async def load(name: str, source: str | None) -> Loaded:
        changes.append((name, source))
        if name == "nowhere":
            raise ModelNotLoadedError(name, "there is none")
        return Loaded(None, replaced=source is None)  # type: ignore[arg-type]  # no one reads the card

    async def unload(name: str) -> None:
        changes.append(name)
        raise LastModelError(name)

    repository = "/v2/repository/models"
    async with serve({"load": load, "unload": unload}, models=("fake", "flowers=resnet18")) as client:
        for name in ("fake", "timm/resnet18", "flowers"):
            loaded = await client.post(f"{repository}/{name}/load", json={})
            assert (loaded.status_code, loaded.content) == (200, b"")
        assert _status(await client.post(f"{repository}/nowhere/load")) == 400
        for parameters in ({"config": "{}"}, {"file:1/model.onnx": "AAAA"}):
            assert _status(await client.post(f"{repository}/fake/load", json={"parameters": parameters})) == 400
        assert _status(await client.post(f"{repository}/no%20name/load")) == 400
        assert _status(await client.post(f"{repository}/fake/unload", json={})) == 409

    assert changes == [
        ("fake", None),
        ("timm/resnet18", "timm/resnet18"),
        ("flowers", "resnet18"),
        ("nowhere", "nowhere"),
        "fake",
    ]


async def test_statistics_are_those_of_the_metrics(serve: Serve, prediction: Callable[..., Prediction]) -> None:
    async def predict(_model: str | None, request: InferenceRequest) -> Answer:
        fault = UndecodableImageError("PNG", "it is cut short")
        results = [fault if image == b"\xffbad" else prediction(dense=True) for image in request.images]
        return Answer("fake", "0123456789abcdef", 3, (3,), results, 1)

    async with serve({"predict": predict}) as client:
        raw = {"Inference-Header-Content-Length": "0"}
        before = (await client.get("/v2/models/fake/stats")).json()["model_stats"]
        for image in (b"\xffone", b"\xfftwo", b"\xffbad"):
            await client.post("/v2/models/fake/infer", content=image, headers=raw)
        after = (await client.get("/v2/models/fake@pixels/versions/1/stats")).json()["model_stats"]
        everything = (await client.get("/v2/models/stats")).json()["model_stats"]

    [statistics] = after
    assert (statistics["name"], statistics["version"]) == ("fake@pixels", "1")
    assert everything == [statistics | {"name": "fake"}]
    stages = ["queue", "compute_input", "compute_infer", "compute_output"]
    assert list(statistics["inference_stats"]) == ["success", "fail", *stages, "cache_hit", "cache_miss"]
    counts = {name: spent["count"] for name, spent in statistics["inference_stats"].items()}
    assert (counts["success"], counts["fail"]) == (2, 1)
    for outcome in ("success", "fail"):
        assert before[0]["inference_stats"][outcome] == {"count": 0, "ns": 0}
        assert statistics["inference_stats"][outcome]["ns"] > 1000
    assert (statistics["batch_stats"], statistics["memory_usage"], statistics["response_stats"]) == ([], [], {})


async def test_what_the_service_does_not_have_is_501(serve: Serve) -> None:
    async with serve() as client:
        for path in (
            "/v2/systemsharedmemory/status",
            "/v2/cudasharedmemory/region/r/register",
            "/v2/trace/setting",
            "/v2/models/fake/trace/setting",
            "/v2/logging",
        ):
            assert _status(await client.get(path)) == 501
            assert _status(await client.post(path, json={})) == 501


async def test_unknown_models_paths_and_methods_have_the_form_of_the_protocol(serve: Serve) -> None:
    async with serve() as client:
        for path in (
            "fake/elsewhere",
            "nobody",
            "nobody/ready",
            "fake@logits",
            "fake/versions/9",
            "fake/versions/9/ready",
        ):
            assert _status(await client.get(f"/v2/models/{path}")) == 404
        assert _status(await client.get("/v2/elsewhere")) == 404
        assert _status(await client.post("/v2/elsewhere")) == 404
        wrong = await client.get("/v2/models/fake/infer")
        assert _status(await client.post("/v2")) == 405
        assert _status(await client.delete("/v2/models/fake")) == 405

    assert (_status(wrong), wrong.headers["allow"]) == (405, "POST")
