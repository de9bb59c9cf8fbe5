"""POST /v2/models/NAME/infer of the Open Inference Protocol: read a request's JSON and tensors, write its answer."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

from fastapi import Request
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from pydantic_core import to_json
from starlette.responses import Response

from app.api.content_encoding import CODINGS, compress, expand
from app.api.contracts.output_tensors import OutputTensor, WantedOutput, chosen_outputs
from app.api.contracts.tensors import (
    BYTES,
    MAX_DIMENSION,
    MAX_DIMENSIONS,
    Tensor,
    count_images,
    flat_values,
    images_of_tensor,
    is_text,
)
from app.api.contracts.views import View
from app.api.json_images import images_of, parse_json
from app.api.uploads import read_body
from app.http.contract import TENSORS_AT
from app.http.problems import BodyTooLargeError, InvalidInputError, NotOfferedError
from app.observability.request_record import record_of
from app.settings import Settings
from models.interface.errors import ImageTooLargeError
from models.interface.request import Image, ReadyPixels
from models.interface.results import Answer

# JSON alone: the event loop stands still while it is parsed. Numbers take 1 to 20 bytes of it each.
_MAX_JSON_BYTES = 16 * 2**20
_MAX_JSON_VALUES = 5_000_000
# JSON before binary tensors.
_MAX_HEAD_BYTES = 64 * 1024
# What a value takes once it is parsed, and what a list or an object takes beyond that.
_VALUE_BYTES = 32
_LIST_BYTES = 64

# Names of parameters in an error's message.
_MAX_NAMED = 4
# Digits of 2**64.
_MAX_SIZE_DIGITS = 20

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
    data: list[Any] | None = None


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


async def read_infer_request(request: Request, view: View, settings: Settings) -> SentRequest:
    """Read the body of `request`: JSON, JSON before a binary tensor, or one file.

    Raises InvalidInputError, NotOfferedError, TooManyImagesError, NoImagesError, and what read_body and expand raise.
    """
    stated = request.headers.get(TENSORS_AT)
    limit_bytes = settings.max_request_bytes if stated else min(settings.max_request_bytes, _MAX_JSON_BYTES)
    try:
        sent = await read_body(request, settings, CODINGS, limit_bytes)
        body = await expand(request, sent, limit_bytes)
    except BodyTooLargeError:
        if limit_bytes == settings.max_request_bytes:
            raise
        raise BodyTooLargeError(limit_bytes, f"Send tensors as binary data, with {TENSORS_AT}.") from None
    if stated is None:
        return await _sent(request, view, settings, body, None)
    head_bytes = _head_bytes(stated, len(body))
    tensors = memoryview(body)[head_bytes:]
    if head_bytes == 0:
        # A raw request: the body is the only input, and all outputs are binary.
        return SentRequest(None, chosen_outputs((), view), [True], await _files(request, settings, [tensors]))
    return await _sent(request, view, settings, body[:head_bytes], tensors)


def _head_bytes(stated: str, body_bytes: int) -> int:
    if not stated.isdecimal() or len(stated) > _MAX_SIZE_DIGITS or int(stated) > body_bytes:
        raise InvalidInputError(f"{TENSORS_AT} is {stated[:40]!r}, and the body has {body_bytes} bytes.")
    if int(stated) > _MAX_HEAD_BYTES:
        raise InvalidInputError(f"The JSON before binary data has more than {_MAX_HEAD_BYTES} bytes.")
    return int(stated)


async def _sent(
    request: Request, view: View, settings: Settings, text: bytes | bytearray, tensors: memoryview | None
) -> SentRequest:
    """Return the request whose JSON is `text`, followed by `tensors` if it has any."""
    stated = _parsed(request, text)
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
    images = await _images(request, settings, view, _tensor(stated.inputs[0], tensors))
    return SentRequest(stated.id, outputs, binary, images)


def _parsed(request: Request, text: bytes | bytearray) -> _InferRequest:
    lists = text.count(b"[") + text.count(b"{")
    record_of(request.scope).reserve_held_bytes(text.count(b",") * _VALUE_BYTES + lists * _LIST_BYTES)
    value = parse_json(request, bytes(text), max_values=_MAX_JSON_VALUES)
    if not isinstance(value, dict):
        raise InvalidInputError("The body must be a JSON object with inputs.")
    try:
        return _InferRequest.model_validate(value)
    except ValidationError as error:
        faults = error.errors(include_url=False, include_context=False, include_input=False)[:_MAX_NAMED]
        found = "; ".join(f"{'.'.join(map(str, fault['loc']))}: {fault['msg']}" for fault in faults)
        raise InvalidInputError(f"The request is not as the protocol has it: {found}.") from None


def _tensor(stated: _Input, tensors: memoryview | None) -> Tensor:
    """Return the input with its contents, which are in the JSON or in `tensors`."""
    parameters = stated.parameters or _InputParameters()
    if parameters.shared_memory_region is not None:
        raise NotOfferedError("shared memory")
    size = parameters.binary_data_size
    if stated.data is not None:
        if size is not None or tensors:
            raise InvalidInputError("The input has data and binary data; send one of them.")
        return Tensor(stated.datatype, stated.shape, stated.data)
    if tensors is None:
        raise InvalidInputError(
            "The input has no data." if size is None else f"The input is binary, and the request has no {TENSORS_AT}."
        )
    # Without a size it is the rest: there is no other input.
    if size is not None and size != len(tensors):
        raise InvalidInputError(f"binary_data_size is {size}, and {len(tensors)} bytes follow the JSON.")
    return Tensor(stated.datatype, stated.shape, tensors)


async def _images(
    request: Request, settings: Settings, view: View, tensor: Tensor
) -> Sequence[Image | ImageTooLargeError]:
    side, limit = view.model.input_size, settings.max_images_per_request
    if tensor.datatype == BYTES and not isinstance(tensor.contents, memoryview):
        count = count_images(BYTES, tensor.shape, side, limit)
        return await images_of(request, settings, flat_values(tensor.contents, count), "data")
    found = images_of_tensor(tensor, side, normalized=view.input != "pixels", limit=limit)
    pixels = [image for image in found if isinstance(image, ReadyPixels)]
    return pixels or await _files(request, settings, [file for file in found if isinstance(file, memoryview)])


async def _files(
    request: Request, settings: Settings, elements: Sequence[memoryview]
) -> list[bytes | ImageTooLargeError]:
    """Return the file in each element. One that is base64 or a data URI is decoded."""
    texts = [str(element, "ascii") for element in elements if is_text(element)]
    decoded: Iterator[bytes | ImageTooLargeError] = iter(())
    if texts:
        decoded = iter(await images_of(request, settings, texts))
    return [
        next(decoded)
        if is_text(element)
        else ImageTooLargeError(settings.max_image_bytes)
        if len(element) > settings.max_image_bytes
        else bytes(element)
        for element in elements
    ]


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
            "model_version": str(view.model.version),
            "parameters": {"fingerprint": answer.fingerprint},
            "outputs": stated,
        }
    )
    headers = {"Content-Type": "application/json"}
    if tensors:
        headers = {"Content-Type": "application/octet-stream", TENSORS_AT: str(len(body))}
        body = b"".join([body, *tensors])
    # Lists of codings are a library's own: probabilities shrink by a few percent.
    coding = request.headers.get("accept-encoding", "").strip().lower()
    if coding in CODINGS - {"identity"} and len(body) > _MIN_COMPRESSED_BYTES:
        body = await compress(body, coding)
        headers["Content-Encoding"] = coding
    return Response(body, headers=headers)
