"""HTTP requests in process, with the real pipeline and a real network: results, invalid images, drain."""

from __future__ import annotations

import base64
import threading
from collections import Counter
from collections.abc import Callable

import httpx2
import numpy as np
import pytest
from fastapi import FastAPI

from gradless.records import ComparisonOptions
from models.interface.request import InferenceRequest
from models.interface.telemetry import Telemetry
from models.networks.specs import ModelSpec
from models.serving.runtime import LocalRuntime, ServingOptions

pytestmark = pytest.mark.anyio

Counted = Callable[[str], Counter[str]]


def files(*images: bytes) -> list[tuple[str, tuple[str, bytes]]]:
    return [("images", (f"{index}.bin", image)) for index, image in enumerate(images)]


async def test_an_image_is_classified(client: httpx2.AsyncClient, clock_png: bytes) -> None:
    answer = await client.post("/v1/classify", params={"top_k": 3}, content=clock_png)
    assert answer.status_code == 200
    body = answer.json()
    [result] = body["results"]
    assert body["model"] == "tiny"
    assert len(result["predictions"]) == 3
    probabilities = [prediction["probability"] for prediction in result["predictions"]]
    assert probabilities == sorted(probabilities, reverse=True)
    assert all(found["label"] == f"class {found['index']}" for found in result["predictions"])


async def test_a_top_k_above_the_number_of_classes_returns_all(client: httpx2.AsyncClient, clock_png: bytes) -> None:
    answer = await client.post("/v1/classify", params={"top_k": 1000}, content=clock_png)
    predictions = answer.json()["results"][0]["predictions"]
    assert len(predictions) == 10
    assert sum(found["probability"] for found in predictions) == pytest.approx(1)


async def test_classes_and_features_of_one_forward_are_those_of_two(
    client: httpx2.AsyncClient, clock_png: bytes, images_total: Counted
) -> None:
    both = (await client.post("/v1/predict", content=clock_png)).json()["results"][0]
    assert images_total((await client.get("/metrics")).text) == {"ok": 1}
    classified = (await client.post("/v1/classify", content=clock_png)).json()["results"][0]
    featured = (await client.post("/v1/features", content=clock_png)).json()["results"][0]
    assert both == classified | featured


async def test_images_in_json_are_answered_as_files_are(client: httpx2.AsyncClient, clock_png: bytes) -> None:
    text = base64.b64encode(clock_png).decode()
    file = (await client.post("/v1/predict", content=clock_png)).json()
    body = (await client.post("/v1/predict", json={"images": [text, f"data:image/png;base64,{text}"]})).json()
    embedded = await client.post("/v1/embeddings", json={"input": text, "normalize": False})
    for result in body["results"]:
        np.testing.assert_allclose(result["features"], file["results"][0]["features"], rtol=1e-4, atol=1e-6)
    assert embedded.json()["data"][0]["embedding"] == file["results"][0]["features"]


async def test_an_invalid_image_among_several_fails_alone(
    client: httpx2.AsyncClient, clock_png: bytes, images_total: Counted
) -> None:
    answer = await client.post("/v1/classify", files=files(clock_png, b"no image", clock_png, b""))
    assert answer.status_code == 200
    first, bad, third, empty = answer.json()["results"]
    assert first == third
    assert "predictions" in first
    assert bad["error"]["type"] == "urn:gradless:problem:unsupported-format"
    assert empty["error"]["type"] == "urn:gradless:problem:empty-image"
    assert images_total((await client.get("/metrics")).text) == {"ok": 2, "bad_image": 2}


async def test_a_single_invalid_image_fails_its_request(
    client: httpx2.AsyncClient, clock_jpeg: bytes, images_total: Counted
) -> None:
    answer = await client.post("/v1/classify", content=clock_jpeg[:700])
    assert answer.status_code == 422
    assert answer.json()["type"] == "urn:gradless:problem:undecodable-image"
    assert images_total((await client.get("/metrics")).text) == {"bad_image": 1}


async def test_results_are_in_the_order_of_the_images(
    client: httpx2.AsyncClient, image_file: Callable[..., bytes], clock_png: bytes
) -> None:
    images = [clock_png, image_file(), clock_png, image_file(None, "JPEG")]
    alone = [(await client.post("/v1/features", content=image)).json()["results"][0] for image in images]
    together = (await client.post("/v1/features", files=files(*images))).json()["results"]
    for one, other in zip(alone, together, strict=True):
        np.testing.assert_allclose(one["features"], other["features"], rtol=1e-4, atol=1e-6)


async def test_the_lens_answers_over_http(client: httpx2.AsyncClient) -> None:
    answer = await client.post("/debug/grad-modes", params={"batch_size": 2, "iterations": 1})
    retained = {found["arm"]: found["retained_bytes"] for found in answer.json()["arms"]}
    assert retained.pop("grad") > 0
    assert set(retained.values()) == {0}
    assert (
        'gradless_forward_retained_bytes{device="cpu",mode="grad",model="tiny"}' in (await client.get("/metrics")).text
    )


async def test_after_drain_new_requests_are_refused(
    client: httpx2.AsyncClient, application: FastAPI, clock_png: bytes
) -> None:
    assert (await client.get("/readyz")).status_code == 200
    application.state.parts.runtime.drain()
    refused = await client.post("/v1/classify", content=clock_png)
    assert refused.status_code == 503
    assert refused.json()["type"] == "urn:gradless:problem:draining"
    assert (await client.get("/readyz")).status_code == 503


async def test_every_thread_of_the_runtime_ends_with_it(tiny: ModelSpec, clock_png: bytes) -> None:
    before = set(threading.enumerate())
    serving = LocalRuntime(ServingOptions(backend="eager", models=[tiny]), Telemetry())
    await serving.predict(None, InferenceRequest("classify", [clock_png] * 4, top_k=1))
    await serving.compare(None, ComparisonOptions(batch_size=1, iterations=1))
    started = set(threading.enumerate()) - before
    names = {thread.name.rsplit("_", 1)[0] for thread in started}
    assert names == {"batcher-tiny", "decode", "decoder-process", "forward", "lens", "supervisor"}
    assert serving.close(timeout_s=30)
    for thread in started:
        thread.join(30)
    assert not any(thread.is_alive() for thread in started)
