"""Cases of KServe's Python client, over the Open Inference Protocol in REST and gRPC."""

from __future__ import annotations

import asyncio
import base64
from typing import Any

import httpx
import numpy as np
import pytest
from kserve import InferInput, InferRequest
from kserve.inference_client import InferenceGRPCClient, InferenceRESTClient, RESTConfig
from native import CLOCK, GRPC, MODEL, PIXELS, URL, assert_close, probabilities


def _infer(tensor: InferInput, model: str = MODEL) -> Any:
    async def infer() -> Any:
        client = InferenceRESTClient(RESTConfig(protocol="v2"))
        request = InferRequest(model_name=model, infer_inputs=[tensor])
        return await client.infer(URL, request, model_name=model)

    return asyncio.run(infer())


def test_health() -> None:
    async def ask() -> list[bool]:
        client = InferenceRESTClient(RESTConfig(protocol="v2"))
        return [
            await client.is_server_live(URL),
            await client.is_server_ready(URL),
            await client.is_model_ready(URL, MODEL),
        ]

    assert asyncio.run(ask()) == [True, True, True]


def test_files_get_the_native_probabilities() -> None:
    text = InferInput("input-0", [1], "BYTES", data=[base64.b64encode(CLOCK).decode()])
    binary = InferInput("input-0", [1], "BYTES")
    binary.set_data_from_numpy(np.array([CLOCK], np.object_))

    for tensor in (text, binary):
        found = _infer(tensor).outputs[0].as_numpy()
        assert_close(found, [probabilities(CLOCK)])


def test_nested_pixels_get_the_answer_of_binary_ones() -> None:
    nested = InferInput("input-0", [1, 3, 224, 224], "UINT8", data=PIXELS[:1].tolist())
    binary = InferInput("input-0", [1, 3, 224, 224], "UINT8")
    binary.set_data_from_numpy(PIXELS[:1])
    found = [_infer(tensor, f"{MODEL}@pixels").outputs[0].as_numpy() for tensor in (nested, binary)]

    assert_close(found[0], found[1])


def test_errors_name_what_is_wrong() -> None:
    text = InferInput("input-0", [1], "BYTES", data=["bm8gaW1hZ2U="])

    with pytest.raises(httpx.HTTPStatusError, match="image 0"):
        _infer(text)
    with pytest.raises(httpx.HTTPStatusError, match="nobody"):
        _infer(text, "nobody")


def test_grpc_gets_the_native_probabilities() -> None:
    async def infer() -> Any:
        client = InferenceGRPCClient(GRPC, channel_args=[])
        binary = InferInput("input-0", [1], "BYTES")
        binary.set_data_from_numpy(np.array([CLOCK], np.object_))
        nested = InferInput("input-0", [1, 3, 224, 224], "UINT8", data=PIXELS[:1].reshape(-1).tolist())
        assert await client.is_server_ready()
        return [
            (await client.infer(InferRequest(model_name=model, infer_inputs=[tensor]))).outputs[0].as_numpy()
            for model, tensor in ((MODEL, binary), (f"{MODEL}@pixels", nested))
        ]

    of_file, of_pixels = asyncio.run(infer())
    assert_close(of_file, [probabilities(CLOCK)])
    assert of_pixels.argmax() == of_file.argmax()
