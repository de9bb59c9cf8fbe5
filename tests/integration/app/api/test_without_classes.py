"""A model that serves an inner layer, over HTTP: features as for other models, and an error for classify."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractAsyncContextManager
from io import BytesIO

import httpx2
import numpy as np
import pytest

from models.interface.errors import NoClassesError
from models.interface.model_sources import FeatureForm
from models.interface.request import InferenceRequest
from models.interface.telemetry import Telemetry
from models.networks import architectures
from models.networks.specs import Classifier, FeatureLayer, ModelSpec
from models.serving.runtime import LocalRuntime, ServingOptions

pytestmark = pytest.mark.anyio

StartOverHttp = Callable[..., AbstractAsyncContextManager[httpx2.AsyncClient]]


def spec_of(form: FeatureForm) -> ModelSpec:
    def build() -> Classifier:
        architecture = architectures.find("timm/test_resnet")
        layer = FeatureLayer("layer3", form)
        return Classifier(architecture.build(None), architecture.transform, architecture.labels, layer)

    return ModelSpec("layer", "timm/test_resnet", build)


@pytest.fixture(params=["pooled", "map"])
async def http(request: pytest.FixtureRequest, over_http: StartOverHttp) -> AsyncIterator[httpx2.AsyncClient]:
    async with over_http(spec_of(request.param)) as client:
        yield client


@pytest.fixture
async def mapped(over_http: StartOverHttp) -> AsyncIterator[httpx2.AsyncClient]:
    async with over_http(spec_of("map")) as client:
        yield client


@pytest.fixture
def serving() -> Iterator[LocalRuntime]:
    runtime = LocalRuntime(ServingOptions(backend="eager", models=[spec_of("pooled")]), Telemetry())
    yield runtime
    runtime.close(timeout_s=10)


async def test_classify_without_classes_is_refused_with_the_path_for_features(
    http: httpx2.AsyncClient, clock_png: bytes
) -> None:
    refused = await http.post("/v1/classify", content=clock_png)
    metrics = (await http.get("/metrics")).text
    assert refused.status_code == 422
    assert refused.json()["type"] == "urn:gradless:problem:no-classes"
    assert (await http.post("/v1/predict?outputs=classes", content=clock_png)).status_code == 422
    assert "/v1/features" in refused.json()["detail"]
    # The request is counted, but no image, because none was read.
    assert 'gradless_requests_total{code="422",contract="native",method="POST",route="/v1/classify"} 1.0' in metrics
    assert 'gradless_requests_total{code="500",contract="native",method="POST",route="/v1/classify"} 0.0' in metrics
    images = [line for line in metrics.splitlines() if line.startswith("gradless_images_total{")]
    assert images
    assert all(line.endswith(" 0.0") for line in images)


async def test_classify_without_classes_is_refused_before_the_body_is_read(mapped: httpx2.AsyncClient) -> None:
    unreadable = {"content-type": "multipart/form-data"}
    assert (await mapped.post("/v1/features", content=b"no parts", headers=unreadable)).status_code == 400
    assert (await mapped.post("/v1/classify", content=b"no parts", headers=unreadable)).status_code == 422


async def test_features_are_returned_in_every_format(
    http: httpx2.AsyncClient, clock_png: bytes, clock_jpeg: bytes
) -> None:
    described = (await http.get("/v1/models/layer")).json()
    files = [("images", clock_png), ("images", clock_jpeg)]
    listed = (await http.post("/v1/features", files=files)).json()
    predicted = (await http.post("/v1/predict", files=files)).json()
    answer = await http.post("/v1/features", files=files, headers={"Accept": "application/x-npy"})
    array = np.load(BytesIO(answer.content))

    assert (described["classes"], described["feature_layer"]) == (0, "layer3")
    assert described["feature_dimensions"] == np.prod(described["feature_shape"]) == listed["dimensions"]
    assert listed["shape"] == described["feature_shape"]
    assert {result["predictions"] for result in predicted["results"]} == {None}
    np.testing.assert_allclose([result["features"] for result in predicted["results"]], array, atol=1e-4)
    assert answer.headers["x-gradless-shape"] == ",".join(map(str, listed["shape"]))
    assert array.shape == (2, listed["dimensions"])
    assert array.dtype == np.float32
    np.testing.assert_allclose([result["features"] for result in listed["results"]], array, atol=1e-4)


async def test_a_feature_map_can_be_restored_by_its_shape(
    mapped: httpx2.AsyncClient, over_http: StartOverHttp, clock_png: bytes
) -> None:
    as_map = (await mapped.post("/v1/features", content=clock_png)).json()
    async with over_http(spec_of("pooled")) as pooled:
        as_mean = (await pooled.post("/v1/features", content=clock_png)).json()

    channels, height, width = as_map["shape"]
    assert height == width > 1
    assert as_mean["shape"] == [channels]
    features = np.array(as_map["results"][0]["features"]).reshape(as_map["shape"])
    np.testing.assert_allclose(features.mean((1, 2)), as_mean["results"][0]["features"], atol=1e-4)
    assert as_map["fingerprint"] != as_mean["fingerprint"]


async def test_the_lens_compares_a_model_without_classes(http: httpx2.AsyncClient) -> None:
    answer = await http.post("/debug/grad-modes?batch_size=2&iterations=1")
    assert answer.status_code == 200
    arms = {arm["arm"]: arm for arm in answer.json()["arms"]}
    assert arms["grad"]["retained_bytes"] > 0
    assert arms["served"]["retained_bytes"] == 0
    assert arms["served"]["top1_agreement"] is None
    assert not answer.json()["left_out"]


async def test_the_python_error_has_the_same_message(serving: LocalRuntime, clock_png: bytes) -> None:
    with pytest.raises(NoClassesError, match="no classes"):
        await serving.predict(None, InferenceRequest("classify", [clock_png], top_k=5))
    answer = await serving.predict(None, InferenceRequest("features", [clock_png]))
    assert answer.shape == (answer.dimensions,)
