"""Cases of Triton's Python client over HTTP and gRPC, synchronous and asynchronous."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tritonclient.grpc as triton_grpc
import tritonclient.grpc.aio as triton_grpc_aio
import tritonclient.http as triton
import tritonclient.http.aio as triton_aio
from google.protobuf.descriptor_pb2 import FileDescriptorSet
from native import (
    ADDRESS,
    CLOCK,
    GRPC,
    LIGHT,
    MODEL,
    PIXELS,
    assert_close,
    classes,
    features,
    normalized,
    probabilities,
)
from tritonclient.utils import InferenceServerException

_PROTOS = Path(__file__).parents[2] / "app/api/contracts"


def _files(*files: bytes) -> Any:
    return np.array(files, np.object_).reshape(-1, 1)


def _input(array: Any, datatype: str) -> triton.InferInput:
    tensor = triton.InferInput("image", list(array.shape), datatype)
    tensor.set_data_from_numpy(array)
    return tensor


def _infer(array: Any, datatype: str = "BYTES", model: str = MODEL, **options: Any) -> triton.InferResult:
    with triton.InferenceServerClient(ADDRESS) as client:
        return client.infer(model, [_input(array, datatype)], **options)


def test_health_metadata_configuration_and_index() -> None:
    with triton.InferenceServerClient(ADDRESS) as client:
        assert client.is_server_live()
        assert client.is_server_ready()
        assert client.is_model_ready(MODEL)
        assert client.is_model_ready(MODEL, "1")
        assert not client.is_model_ready("nobody")
        assert "binary_tensor_data" in client.get_server_metadata()["extensions"]
        described = client.get_model_metadata(f"{MODEL}@pixels")
        config = client.get_model_config(f"{MODEL}@pixels")
        index = client.get_model_repository_index()

    assert described["inputs"] == [{"name": "image", "datatype": "UINT8", "shape": [-1, 3, 224, 224]}]
    assert described["outputs"] == [{"name": "probabilities", "datatype": "FP32", "shape": [-1, 1000]}]
    assert (config["max_batch_size"], config["input"][0]["format"]) == (64, "FORMAT_NCHW")
    assert {"name": MODEL, "version": "1", "state": "READY", "reason": ""} in index


def test_files_get_the_native_probabilities() -> None:
    result = _infer(_files(CLOCK, LIGHT), request_id="7")

    assert_close(result.as_numpy("probabilities"), [probabilities(CLOCK), probabilities(LIGHT)])
    assert (result.get_response()["id"], result.get_response()["model_name"]) == ("7", MODEL)


def test_classification_gives_the_native_classes() -> None:
    outputs = [triton.InferRequestedOutput("probabilities", class_count=3)]
    rows = _infer(_files(CLOCK, LIGHT), outputs=outputs).as_numpy("probabilities")

    for row, image in zip(rows, (CLOCK, LIGHT), strict=True):
        for text, own in zip(row, classes(image, 3), strict=True):
            value, index, label = text.decode().split(":", 2)
            assert (int(index), label) == (own["index"], own["label"])
            assert_close(float(value), own["probability"])


def test_outputs_are_json_or_binary() -> None:
    outputs = [
        triton.InferRequestedOutput("features", binary_data=False),
        triton.InferRequestedOutput("probabilities", binary_data=True),
    ]
    result = _infer(_files(CLOCK), outputs=outputs)

    assert_close(result.as_numpy("features"), [features(CLOCK)], 1e-3)
    assert_close(result.as_numpy("probabilities"), [probabilities(CLOCK)])
    assert_close(_infer(_files(CLOCK), model=f"{MODEL}@features").as_numpy("features"), [features(CLOCK)], 1e-3)


@pytest.mark.parametrize(
    ("view", "datatype", "array"),
    [
        ("tensor", "FP32", normalized(PIXELS)),
        ("tensor", "FP16", normalized(PIXELS).astype(np.float16)),
        ("pixels", "FP32", PIXELS.astype(np.float32)),
        ("pixels", "UINT8", np.ascontiguousarray(PIXELS.transpose(0, 2, 3, 1))),
        ("pixels", "INT32", PIXELS.astype(np.int32)),
    ],
)
def test_pixels_of_every_form_get_the_same_answer(view: str, datatype: str, array: Any) -> None:
    expected = _infer(PIXELS, "UINT8", f"{MODEL}@pixels").as_numpy("probabilities")

    assert_close(_infer(array, datatype, f"{MODEL}@{view}").as_numpy("probabilities"), expected)
    assert expected.argmax(1).tolist() == [classes(image, 1)[0]["index"] for image in (CLOCK, LIGHT)]


@pytest.mark.parametrize("algorithm", ["gzip", "deflate"])
def test_bodies_are_compressed_in_both_directions(algorithm: str) -> None:
    compressed = {"request_compression_algorithm": algorithm, "response_compression_algorithm": algorithm}

    assert_close(_infer(_files(CLOCK), **compressed).as_numpy("probabilities"), [probabilities(CLOCK)])


def test_errors_name_what_is_wrong() -> None:
    for arguments, status, part in (
        ((_files(CLOCK), "BYTES", "nobody"), "404", "nobody"),
        ((_files(CLOCK, b"no image"),), "400", "image 1"),
        ((np.zeros((1, 3, 8, 8), np.uint8), "UINT8"), "400", "224"),
    ):
        with pytest.raises(InferenceServerException) as raised:
            _infer(*arguments)
        assert raised.value.status() == status
        assert part in raised.value.message()
    shared_memory = pytest.raises(InferenceServerException, match="shared memory")
    with triton.InferenceServerClient(ADDRESS) as client, shared_memory:
        client.get_system_shared_memory_status()


def test_statistics_grow_with_requests() -> None:
    def statistics() -> Any:
        with triton.InferenceServerClient(ADDRESS) as client:
            [found] = client.get_inference_statistics(MODEL)["model_stats"]
            return found

    before = statistics()
    _infer(_files(CLOCK, LIGHT))
    after = statistics()

    assert after["inference_count"] == before["inference_count"] + 2
    assert after["execution_count"] > before["execution_count"]
    for duration, counted in (("success", 1), ("queue", 2), ("compute_infer", 2)):
        first, second = (found["inference_stats"][duration] for found in (before, after))
        assert second["count"] == first["count"] + counted
        assert second["ns"] > first["ns"]


def test_the_last_model_is_not_unloaded() -> None:
    refused = pytest.raises(InferenceServerException, match="only model")
    with triton.InferenceServerClient(ADDRESS) as client, refused:
        client.unload_model(MODEL)


def test_the_asynchronous_client_gets_the_native_probabilities() -> None:
    async def infer() -> Any:
        async with triton_aio.InferenceServerClient(ADDRESS) as client:
            assert await client.is_server_ready()
            assert (await client.get_model_metadata(MODEL))["inputs"][0]["datatype"] == "BYTES"
            results = await asyncio.gather(
                *(client.infer(MODEL, [_input(_files(image), "BYTES")]) for image in (CLOCK, LIGHT))
            )
            return [result.as_numpy("probabilities")[0] for result in results]

    assert_close(asyncio.run(infer()), [probabilities(CLOCK), probabilities(LIGHT)])


def _grpc_input(array: Any, datatype: str) -> triton_grpc.InferInput:
    tensor = triton_grpc.InferInput("image", list(array.shape), datatype)
    tensor.set_data_from_numpy(array)
    return tensor


def _grpc_infer(array: Any, datatype: str = "BYTES", model: str = MODEL, **options: Any) -> triton_grpc.InferResult:
    with triton_grpc.InferenceServerClient(GRPC) as client:
        return client.infer(model, [_grpc_input(array, datatype)], **options)


def test_grpc_describes_models_as_http_does() -> None:
    with triton_grpc.InferenceServerClient(GRPC) as client:
        assert client.is_server_live()
        assert client.is_server_ready()
        assert client.is_model_ready(MODEL)
        assert not client.is_model_ready("nobody")
        described = client.get_model_metadata(f"{MODEL}@pixels", as_json=True)
        config = client.get_model_config(f"{MODEL}@pixels").config
        index = client.get_model_repository_index().models

    assert described["inputs"][0]["datatype"] == "UINT8"
    assert (list(config.input[0].dims), config.max_batch_size) == ([3, 224, 224], 64)
    assert MODEL in {model.name for model in index}


def test_grpc_gives_the_native_answers() -> None:
    both = [triton_grpc.InferRequestedOutput(name) for name in ("features", "probabilities")]
    best = [triton_grpc.InferRequestedOutput("probabilities", class_count=1)]
    result = _grpc_infer(_files(CLOCK, LIGHT), outputs=both, request_id="7", compression_algorithm="gzip")
    [[text]] = _grpc_infer(_files(CLOCK), outputs=best).as_numpy("probabilities")

    assert_close(result.as_numpy("probabilities"), [probabilities(CLOCK), probabilities(LIGHT)])
    assert_close(result.as_numpy("features"), [features(CLOCK), features(LIGHT)], 1e-3)
    assert result.get_response().id == "7"
    assert text.decode().endswith(f":{classes(CLOCK, 1)[0]['label']}")


@pytest.mark.parametrize(
    ("view", "datatype", "array"),
    [("pixels", "UINT8", PIXELS), ("tensor", "FP32", normalized(PIXELS)), ("tensor", "FP16", normalized(PIXELS))],
)
def test_grpc_takes_pixels_as_http_does(view: str, datatype: str, array: Any) -> None:
    sent = array.astype(np.float16) if datatype == "FP16" else array
    expected = _infer(PIXELS, "UINT8", f"{MODEL}@pixels").as_numpy("probabilities")

    assert_close(_grpc_infer(sent, datatype, f"{MODEL}@{view}").as_numpy("probabilities"), expected)


def test_grpc_errors_name_what_is_wrong() -> None:
    for arguments, code, part in (
        ((_files(CLOCK), "BYTES", "nobody"), "NOT_FOUND", "nobody"),
        ((_files(CLOCK, b"no image"),), "INVALID_ARGUMENT", "image 1"),
        ((np.zeros((1, 3, 8, 8), np.uint8), "UINT8"), "INVALID_ARGUMENT", "224"),
    ):
        with pytest.raises(InferenceServerException) as raised:
            _grpc_infer(*arguments)
        assert raised.value.status() == f"StatusCode.{code}"
        assert part in raised.value.message()


def test_the_asynchronous_grpc_client_gets_the_native_probabilities() -> None:
    async def infer() -> Any:
        async with triton_grpc_aio.InferenceServerClient(GRPC) as client:
            return (await client.infer(MODEL, [_grpc_input(_files(CLOCK), "BYTES")])).as_numpy("probabilities")

    assert_close(asyncio.run(infer()), [probabilities(CLOCK)])


def test_the_compiled_description_is_that_of_the_proto_files(tmp_path: Path) -> None:
    compiled = tmp_path / "compiled"
    files = ["open_inference.proto", "health.proto"]
    command = [sys.executable, "-m", "grpc_tools.protoc", "-I", ".", "--descriptor_set_out", str(compiled), *files]
    subprocess.run(command, cwd=_PROTOS, check=True)

    kept, made = (
        FileDescriptorSet.FromString(file.read_bytes()) for file in (_PROTOS / "open_inference.binpb", compiled)
    )
    assert kept == made
