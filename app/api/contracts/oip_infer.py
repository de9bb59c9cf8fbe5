"""POST /v2/models/NAME/infer of the Open Inference Protocol: read a request's JSON and tensors, write its answer."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Annotated, Any, Literal

from fastapi import Request
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from pydantic_core import to_json
from starlette.datastructures import Headers
from starlette.responses import Response

from app.api.content_encoding import CODINGS, compress, expand
from app.api.contracts.json_numbers import JsonNumbers, take_numbers
from app.api.contracts.output_tensors import OutputTensor, WantedOutput, chosen_outputs
from app.api.contracts.tensors import (
    BYTES,
    MAX_DIMENSION,
    MAX_DIMENSIONS,
    Tensor,
    array_of_numbers,
    count_images,
    files_of,
    flat_values,
    images_of_input,
)
from app.api.contracts.views import View
from app.api.dependencies import settings_of
from app.api.json_images import images_of, parse_object
from app.api.off_loop import off_loop
from app.api.uploads import MAX_SIZE_DIGITS, content_type_of, read_body
from app.http.contract import TENSORS_AT
from app.http.problems import BodyTooLargeError, InvalidInputError, NotOfferedError
from app.observability.request_record import record_of
from models.interface.errors import ImageTooLargeError
from models.interface.request import Image
from models.interface.results import Answer

# JSON alone, in which a pixel takes up to 20 bytes.
_MAX_JSON_BYTES = 16 * 2**20
# JSON before binary tensors.
_MAX_HEAD_BYTES = 64 * 1024
# A number in the array, and while a piece of the JSON is parsed.
_NUMBER_BYTES = 8

# Clients of Triton on SageMaker, which passes few headers on.
_SAGEMAKER_TYPE = "application/vnd.sagemaker-triton.binary+json"
_SAGEMAKER_AT = "json-header-size"

# Names of parameters in an error's message.
_MAX_NAMED = 4

# Smaller answers are not compressed.
_MIN_COMPRESSED_BYTES = 1024


class _Part(BaseModel):
    """A part of a request. Clients send parameters that are ignored, such as `priority`."""

    model_config = ConfigDict(strict=True, frozen=True)


class _InputParameters(_Part):
    binary_data_size: Annotated[int, Field(ge=0)] | None = None
    shared_memory_region: Any = None


class _Input(_Part):
    name: str
    datatype: str
    shape: Annotated[list[Annotated[int, Field(ge=0, le=MAX_DIMENSION)]], Field(max_length=MAX_DIMENSIONS)]
    parameters: _InputParameters | None = None
    # True stands for the numbers that were taken out.
    data: list[Any] | Literal[True] | None = None


class _OutputParameters(_Part):
    classification: Annotated[int, Field(gt=0)] | None = None
    binary_data: bool | None = None
    shared_memory_region: Any = None


class _Output(_Part):
    name: str
    parameters: _OutputParameters | None = None


class _RequestParameters(_Part):
    binary_data_output: bool | None = None


class _InferRequest(_Part):
    id: str | None = None
    parameters: _RequestParameters | None = None
    inputs: Annotated[list[_Input], Field(min_length=1, max_length=1)]
    outputs: Annotated[list[_Output], Field(max_length=16)] | None = None


@dataclass(frozen=True, slots=True)
class SentRequest:
    """An inference request: its id, the outputs that it asks for, whether each is binary, and its images in order."""

    id: str | None
    outputs: Sequence[WantedOutput]
    binary: Sequence[bool]
    images: Sequence[Image | ImageTooLargeError]


async def read_infer_request(request: Request, view: View) -> SentRequest:
    """Read the body of `request`: JSON, JSON before a binary tensor, or one file.

    Raises InvalidInputError, NotOfferedError, TooManyImagesError, NoImagesError, and what read_body and expand raise.
    """
    stated = _stated_head(request.headers)
    max_bytes = settings_of(request).max_request_bytes
    limit_bytes = max_bytes if stated else min(max_bytes, _MAX_JSON_BYTES)
    try:
        sent = await read_body(request, CODINGS, limit_bytes)
        body = await expand(request, sent, limit_bytes)
    except BodyTooLargeError:
        if limit_bytes == max_bytes:
            raise
        raise BodyTooLargeError(limit_bytes, f"Send tensors as binary data, with {TENSORS_AT}.") from None
    if stated is None:
        return await _sent(request, view, body, None)
    head_bytes = _head_bytes(stated, len(body))
    tensors = memoryview(body)[head_bytes:]
    if head_bytes == 0:
        # A raw request: the body is the only input, and all outputs are binary.
        return SentRequest(None, chosen_outputs((), view), [True], await files_of(request, [tensors]))
    return await _sent(request, view, body[:head_bytes], tensors)


def is_of_sagemaker(headers: Headers) -> bool:
    """Return True if the body has Triton's type on SageMaker, which says itself where binary tensors begin."""
    return headers.get("content-type", "").lower().startswith(_SAGEMAKER_TYPE)


def _stated_head(headers: Headers) -> str | None:
    """Return where binary tensors begin, as the client states it, or None for JSON alone."""
    if not is_of_sagemaker(headers):
        # Several are no number.
        return ",".join(headers.getlist(TENSORS_AT)) if TENSORS_AT in headers else None
    _, parameters = content_type_of(headers)
    stated = parameters.get(_SAGEMAKER_AT.encode())
    return None if stated is None else stated.decode("latin-1")


def _head_bytes(stated: str, body_bytes: int) -> int:
    if not stated.isdecimal() or len(stated) > MAX_SIZE_DIGITS or int(stated) > body_bytes:
        raise InvalidInputError(f"{TENSORS_AT} is {stated[:40]!r}, and the body has {body_bytes} bytes.")
    if int(stated) > _MAX_HEAD_BYTES:
        raise InvalidInputError(f"The JSON before binary data has more than {_MAX_HEAD_BYTES} bytes.")
    return int(stated)


async def _sent(request: Request, view: View, text: bytes | bytearray, tensors: memoryview | None) -> SentRequest:
    """Return the request whose JSON is `text`, followed by `tensors` if it has any."""
    stated, numbers = await _parsed(request, text)
    parameters = [output.parameters or _OutputParameters() for output in stated.outputs or ()]
    if any(each.shared_memory_region is not None for each in parameters):
        raise NotOfferedError("shared memory")
    wanted = [
        WantedOutput(output.name, each.classification or 0)
        for output, each in zip(stated.outputs or (), parameters, strict=True)
    ]
    outputs = chosen_outputs(wanted, view)
    all_binary = bool(stated.parameters and stated.parameters.binary_data_output)
    binary = [all_binary if each.binary_data is None else each.binary_data for each in parameters] or [all_binary]
    images = await _images(request, view, stated.inputs[0], numbers, tensors)
    return SentRequest(stated.id, outputs, binary, images)


async def _parsed(request: Request, text: bytes | bytearray) -> tuple[_InferRequest, JsonNumbers | None]:
    """Return the request in `text`, and the numbers that were taken out of it, if there are any."""
    rest, numbers = await off_loop(len(text), partial(take_numbers, text))
    value = await parse_object(request, rest)
    try:
        return _InferRequest.model_validate(value), numbers
    except ValidationError as error:
        faults = error.errors(include_url=False, include_context=False, include_input=False)[:_MAX_NAMED]
        found = "; ".join(f"{'.'.join(map(str, fault['loc']))}: {fault['msg']}" for fault in faults)
        raise InvalidInputError(f"The request is not as the protocol has it: {found}.") from None


async def _images(
    request: Request, view: View, stated: _Input, numbers: JsonNumbers | None, tensors: memoryview | None
) -> Sequence[Image | ImageTooLargeError]:
    """Return the images of the only input, which has them in its `data` or behind the JSON."""
    parameters = stated.parameters or _InputParameters()
    if parameters.shared_memory_region is not None:
        raise NotOfferedError("shared memory")
    limit = settings_of(request).max_images_per_request
    count = count_images(stated.datatype, stated.shape, view.model.input_size, limit)
    contents: memoryview | NDArray[Any]
    if stated.data is None:
        contents = _binary(tensors, parameters.binary_data_size)
    elif parameters.binary_data_size is not None or tensors:
        raise InvalidInputError("The input has data and binary data; send one of them.")
    elif stated.datatype == BYTES and isinstance(stated.data, list):
        return await images_of(request, flat_values(stated.data, count))
    elif stated.datatype == BYTES or stated.data is not True or numbers is None:
        expected = "strings" if stated.datatype == BYTES else "numbers"
        raise InvalidInputError(f"The data of {stated.datatype} must be a list of {expected}.")
    else:
        contents = await _array(request, stated, numbers)
    return await images_of_input(request, view, Tensor(stated.datatype, stated.shape, contents))


def _binary(tensors: memoryview | None, size: int | None) -> memoryview:
    """Return the binary tensor of the only input. Without a `size` it is all that follows the JSON."""
    if tensors is None:
        raise InvalidInputError(
            "The input has no data." if size is None else f"The input is binary, and the request has no {TENSORS_AT}."
        )
    if size is not None and size != len(tensors):
        raise InvalidInputError(f"binary_data_size is {size}, and {len(tensors)} bytes follow the JSON.")
    return tensors


async def _array(request: Request, stated: _Input, numbers: JsonNumbers) -> NDArray[Any]:
    count = math.prod(stated.shape)
    if count > numbers.most:
        raise InvalidInputError(f"The shape is of {count} numbers, and data has fewer.")
    record_of(request.scope).reserve_held_bytes(_NUMBER_BYTES * count)
    size_bytes = numbers.end - numbers.start
    return await off_loop(size_bytes, lambda: array_of_numbers(stated.datatype, numbers.pieces(), count))


async def infer_response(
    request: Request, view: View, sent: SentRequest, answer: Answer, outputs: Sequence[OutputTensor]
) -> Response:
    """Return the answer with `outputs`, in JSON or after it, compressed if the client asks for that."""
    stated: list[dict[str, Any]] = []
    tensors: list[bytes] = []
    for output, binary in zip(outputs, sent.binary, strict=True):
        head = {"name": output.name, "datatype": output.datatype, "shape": output.shape}
        if binary:
            tensors.append(output.raw())
            stated.append({**head, "parameters": {"binary_data_size": len(tensors[-1])}})
        else:
            # Triton's C++ client takes an output with parameters for a binary one.
            stated.append({**head, "data": output.flat()})
    body = to_json(
        {
            **({} if sent.id is None else {"id": sent.id}),
            "model_name": view.name,
            "model_version": str(answer.version),
            "parameters": {"fingerprint": answer.fingerprint},
            "outputs": stated,
        }
    )
    headers = {"Content-Type": "application/json"}
    if tensors:
        headers = {"Content-Type": "application/octet-stream", TENSORS_AT: str(len(body))}
        if is_of_sagemaker(request.headers):
            headers["Content-Type"] = f"{_SAGEMAKER_TYPE};{_SAGEMAKER_AT}={len(body)}"
        body = b"".join([body, *tensors])
    # Lists of codings are a library's own: probabilities shrink by a few percent.
    coding = request.headers.get("accept-encoding", "").strip().lower()
    if coding in CODINGS - {"identity"} and len(body) > _MIN_COMPRESSED_BYTES:
        body = await compress(body, coding)
        headers["Content-Encoding"] = coding
    return Response(body, headers=headers)
