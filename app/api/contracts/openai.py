"""OpenAI's POST /v1/embeddings for images, as clients of OpenAI, infinity, vLLM, NVIDIA NIM and Jina send it.

These clients also read GET /v1/models, a native route whose answers have OpenAI's fields too.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from fastapi import Request
from pydantic_core import to_json

from app.api.contracts.adapter import IMAGES, contract_router, predict, upload_for
from app.api.dependencies import inference_allowed, runtime_of
from app.api.inference import base64_of, scaled
from app.api.json_images import images_of, parse_object
from app.api.uploads import read_body
from app.http.contract import Contract, json_errors
from app.http.problems import TABLE, InvalidInputError, NoImagesError, Row, SlowBodyError, UnauthorizedError
from models.interface.errors import DrainingError, OverloadedError, UnknownModelError
from models.interface.request import InferenceRequest

_RATE_LIMITED = TABLE[OverloadedError].status
_SERVER_ERROR = 500

# Codes that clients know. The others are the ends of the problems' types.
_CODES = {TABLE[UnknownModelError].slug: "model_not_found", TABLE[UnauthorizedError].slug: "invalid_api_key"}

# A message about a key of the body begins with the key: "dimensions: ...", "input[3]: ...".
_KEY = re.compile(r"([a-z_]+)(?:\[\d+\])?: ")


def _error(status: int, row: Row, message: str) -> object:
    kind, code = "invalid_request_error", _CODES.get(row.slug, row.slug)
    if status == _RATE_LIMITED:
        kind, code = "rate_limit_error", "rate_limit_exceeded"
    elif status >= _SERVER_ERROR or row is TABLE[SlowBodyError]:
        kind = "server_error"
    key = _KEY.match(message)
    return {"error": {"message": message, "type": kind, "param": None if key is None else key[1], "code": code}}


OPENAI = Contract("openai", json_errors(_error), item="input[{}]")

router = contract_router(OPENAI)


async def embeddings(request: Request) -> object:
    """Return the feature vector of each image in `input`, in order, scaled to length 1 unless `normalize` is false.

    Raises what upload_for, read_body, parse_object, images_of and predict raise.
    """
    # The body names the model, so the rest of what can be checked is checked before it is read.
    await inference_allowed(request)
    if runtime_of(request).draining:
        raise DrainingError
    asked = await parse_object(request, await read_body(request))
    name = asked.get("model")
    if not isinstance(name, str | None):
        raise InvalidInputError("model: it must be the name of a model.")
    upload, _ = await upload_for(request, name)
    encoding = _option(asked, ("encoding_format", "embedding_type"), ("float", "base64"))
    normalize = _option(asked, ("normalize", "normalized"), (True, False))
    # infinity's client sends 0.
    _option(asked, ("dimensions",), (upload.model.feature_dimensions, 0))
    # NIM's clients may send a list.
    _option(asked, ("modality",), ("image", ["image"]))
    images = await images_of(request, _texts_of_images(asked))
    answer, predictions = await predict(upload, images, InferenceRequest("features"))
    vectors = [scaled(each.features, normalize=bool(normalize)) for each in predictions]
    embedded = [base64_of(vector) if encoding == "base64" else vector.tolist() for vector in vectors]
    return {
        "object": "list",
        "model": answer.model if name is None else name,
        "data": [{"object": "embedding", "index": index, "embedding": each} for index, each in enumerate(embedded)],
        "usage": {"prompt_tokens": 0, "total_tokens": 0},
        "system_fingerprint": answer.fingerprint,
    }


router.add_api_route("/v1/embeddings", embeddings, methods=["POST"], tags=[IMAGES])


def _option(asked: Mapping[str, Any], keys: Sequence[str], allowed: Sequence[object]) -> object:
    """Return the value of the first of `keys` that is in `asked`; without one, the first of `allowed`. Raises
    InvalidInputError for a value that is not allowed."""
    for key in keys:
        value = asked.get(key)
        if value is None:
            continue
        if value not in allowed:
            names = " or ".join(to_json(each).decode() for each in allowed)
            raise InvalidInputError(f"{key}: it must be {names}.")
        return value
    return allowed[0]


def _texts_of_images(asked: Mapping[str, Any]) -> list[object]:
    """Return the text of each image, from `input` or else from `messages`. Raises InvalidInputError."""
    items = asked.get("input")
    if items == []:
        raise NoImagesError("input: it has no image.")
    if items is not None:
        return [_text_of(item) for item in (items if isinstance(items, list) else [items])]
    messages = asked.get("messages")
    if messages is None:
        raise InvalidInputError("input: it is missing; send images as base64 or as data URIs.")
    return [_text_in_messages(messages)]


def _text_of(item: object) -> object:
    """Return the text of the image in `item`: itself, or the value that Jina, OpenAI and NIM name as below. None if it
    has none."""
    if not isinstance(item, dict):
        return item
    stated = next((item[key] for key in ("image", "image_url", "url") if key in item), None)
    return stated.get("url") if isinstance(stated, dict) else stated


def _text_in_messages(messages: object) -> object:
    """Return the text of the only image in a conversation, as vLLM embeds one. Parts with text are ignored."""
    contents = [message.get("content") for message in _objects(messages)]
    texts = [text for content in contents for part in _objects(content) if (text := _text_of(part)) is not None]
    if len(texts) != 1:
        raise InvalidInputError(f"messages: they must have one image, and have {len(texts)}.")
    return texts[0]


def _objects(value: object) -> list[dict[str, Any]]:
    return [each for each in value if isinstance(each, dict)] if isinstance(value, list) else []
