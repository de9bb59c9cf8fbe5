"""The methods of the Open Inference Protocol over gRPC: what they answer. app/api/contracts/grpc_server.py serves them.

A call is an HTTP request to the rest of the application, so rights, limits, cancellation, metrics, log and traces are
those of the other protocols.
"""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fastapi import Request
from numpy.typing import NDArray

from app.api.contracts.adapter import predict, upload_for
from app.api.contracts.oip_models import (
    EXTENSIONS,
    STATISTICS,
    check_load_parameters,
    load_by_name,
    model_configuration,
    model_metadata,
    repository_index,
    unload_by_name,
)
from app.api.contracts.output_tensors import WantedOutput, chosen_outputs, inference_request, output_tensors
from app.api.contracts.tensors import BYTES, Tensor, array_of_numbers, count_images, images_of_input
from app.api.contracts.views import View, view_named
from app.api.dependencies import admin_allowed, inference_allowed, parts_of, runtime_of, settings_of
from app.api.off_loop import off_loop
from app.http.problems import InvalidInputError, NotOfferedError, UnknownVersionError
from models.interface.errors import UnknownModelError

# The field of typed contents by datatype. The 16-bit floats have none.
_TYPED = {
    BYTES: "bytes_contents",
    **dict.fromkeys(("UINT8", "UINT16", "UINT32"), "uint_contents"),
    **dict.fromkeys(("INT8", "INT16", "INT32"), "int_contents"),
    "UINT64": "uint64_contents",
    "INT64": "int64_contents",
    "FP32": "fp32_contents",
    "FP64": "fp64_contents",
}

# Numbers that NumPy takes at once, in about a millisecond.
_PIECE = 16 * 1024
_NUMBER_BYTES = 8


@dataclass(frozen=True, slots=True)
class Call:
    """A call: its request, its message, and the raw inputs that were taken out of the message."""

    request: Request
    message: Any
    raw_inputs: Sequence[memoryview] = ()


@dataclass(frozen=True, slots=True)
class Procedure:
    """What a method does: `answer` returns the fields of the response, after `allowed`, if any, has checked the rights
    of the client."""

    answer: Callable[[Call], Awaitable[Mapping[str, Any]]]
    allowed: Callable[[Request], Awaitable[None]] | None = inference_allowed


async def _server_live(_: Call) -> Mapping[str, Any]:
    return {"live": True}


async def _server_ready(call: Call) -> Mapping[str, Any]:
    return {"ready": parts_of(call.request).ready}


async def _server_metadata(call: Call) -> Mapping[str, Any]:
    extensions = [name for name in EXTENSIONS if name != STATISTICS]
    return {"name": "gradless", "version": call.request.app.version, "extensions": extensions}


async def _model_ready(call: Call) -> Mapping[str, Any]:
    runtime = runtime_of(call.request)
    try:
        view = _view(call)
    except (UnknownModelError, UnknownVersionError):
        # No error: clients ask while a model is loaded.
        return {"ready": False}
    return {"ready": view.model.name not in runtime.down and not runtime.draining}


async def _model_metadata(call: Call) -> Mapping[str, Any]:
    return model_metadata(_view(call))


async def _model_config(call: Call) -> Mapping[str, Any]:
    return {"config": model_configuration(_view(call), settings_of(call.request).max_images_per_request)}


def _view(call: Call) -> View:
    return view_named(runtime_of(call.request), call.message.name, call.message.version or None)


async def _repository_index(call: Call) -> Mapping[str, Any]:
    return {"models": repository_index(runtime_of(call.request), ready_only=call.message.ready)}


async def _load(call: Call) -> Mapping[str, Any]:
    check_load_parameters(call.message.parameters)
    configured = settings_of(call.request).models
    await load_by_name(runtime_of(call.request), configured, call.message.model_name)
    return {}


async def _unload(call: Call) -> Mapping[str, Any]:
    await unload_by_name(runtime_of(call.request), call.message.model_name)
    return {}


async def _infer(call: Call) -> Mapping[str, Any]:
    """Answer all images of a request, or none."""
    message = call.message
    upload, view = await upload_for(call.request, message.model_name, message.model_version or None)
    outputs = chosen_outputs([_wanted(output) for output in message.outputs], view)
    if len(message.inputs) != 1:
        raise InvalidInputError(f"A request has one input, of images; this one has {len(message.inputs)}.")
    images = await images_of_input(call.request, view, await _tensor(call, view))
    answer, predictions = await predict(upload, images, inference_request(outputs))
    tensors = output_tensors(outputs, predictions)
    return {
        "model_name": view.name,
        "model_version": str(answer.version),
        "id": message.id,
        "parameters": {"fingerprint": {"string_param": answer.fingerprint}},
        "outputs": [{"name": each.name, "datatype": each.datatype, "shape": each.shape} for each in tensors],
        # tritonclient finds nothing in typed contents.
        "raw_output_contents": [each.raw() for each in tensors],
    }


def _wanted(output: Any) -> WantedOutput:
    _refuse_shared_memory(output.parameters)
    if "classification" not in output.parameters:
        return WantedOutput(output.name)
    stated = output.parameters["classification"]
    kind = stated.WhichOneof("parameter_choice")
    count = getattr(stated, kind) if kind in {"int64_param", "uint64_param"} else 0
    if count < 1:
        raise InvalidInputError("classification must be a number of classes, from 1.")
    return WantedOutput(output.name, count)


def _refuse_shared_memory(parameters: Mapping[str, Any]) -> None:
    if "shared_memory_region" in parameters:
        raise NotOfferedError("shared memory")


async def _tensor(call: Call, view: View) -> Tensor:
    """Return the only input, with its contents."""
    [sent] = call.message.inputs
    _refuse_shared_memory(sent.parameters)
    datatype, shape = sent.datatype, list(sent.shape)
    limit = settings_of(call.request).max_images_per_request
    count_images(datatype, shape, view.model.input_size, limit)
    if not call.raw_inputs:
        return Tensor(datatype, shape, await _typed(sent, datatype, math.prod(shape)))
    if len(call.raw_inputs) != 1 or sent.contents.ByteSize():
        raise InvalidInputError("An input has either one element of raw_input_contents or typed contents.")
    return Tensor(datatype, shape, call.raw_inputs[0])


async def _typed(sent: Any, datatype: str, count: int) -> NDArray[Any] | Sequence[bytes]:
    """Return the typed contents of an input: an array, or the elements of BYTES."""
    if datatype not in _TYPED:
        raise InvalidInputError(f"{datatype} has no typed contents; use raw_input_contents.")
    values = getattr(sent.contents, _TYPED[datatype])
    if datatype == BYTES:
        return list(values)
    if len(values) != count:
        raise InvalidInputError(f"The shape is of {count} numbers, and the contents have {len(values)}.")

    def pieces() -> Iterator[Sequence[Any]]:
        return (values[start : start + _PIECE] for start in range(0, count, _PIECE))

    return await off_loop(_NUMBER_BYTES * count, lambda: array_of_numbers(datatype, pieces(), count))


PROCEDURES = {
    "ServerLive": Procedure(_server_live, None),
    "ServerReady": Procedure(_server_ready, None),
    "ServerMetadata": Procedure(_server_metadata),
    "ModelReady": Procedure(_model_ready),
    "ModelMetadata": Procedure(_model_metadata),
    "ModelConfig": Procedure(_model_config),
    "ModelInfer": Procedure(_infer),
    "RepositoryIndex": Procedure(_repository_index),
    "RepositoryModelLoad": Procedure(_load, admin_allowed),
    "RepositoryModelUnload": Procedure(_unload, admin_allowed),
}
