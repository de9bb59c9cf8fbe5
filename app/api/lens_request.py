"""Read a request to the lens: parameters in the query or in a JSON body; any other body is an image."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from fastapi import Request
from fastapi.exceptions import RequestValidationError
from pydantic import ValidationError
from python_multipart.multipart import parse_options_header

from app.api.dependencies import card_named, parts_of
from app.api.lens_schemas import GradModesQuery, GradModesRequest
from app.api.uploads import read_images, read_small
from app.http.problems import TooManyImagesError
from gradless.records import ComparisonOptions
from models.interface.errors import ImageTooLargeError
from models.interface.runtime import Runtime

_JSON = b"application/json"


@dataclass(frozen=True, slots=True)
class LensRequest:
    model: str
    options: ComparisonOptions
    image: bytes | None


async def read_lens_request(request: Request, runtime: Runtime, query: GradModesQuery) -> LensRequest:
    """Read the body, if there is one. Raises UnknownModelError, the errors of reading a body, and
    RequestValidationError for invalid JSON."""
    settings = parts_of(request).settings
    # Checked before the body, so that a client with a wrong model name need not send it.
    card = card_named(runtime, query.model)
    content_type, _ = parse_options_header(request.headers.get("content-type"))
    if content_type == _JSON:
        merged = _merged(query, await read_small(request, timeout_s=settings.read_timeout_s))
        return LensRequest(card_named(runtime, merged.model).name, merged.options(), None)
    images = await read_images(request, settings)
    if len(images) > 1:
        raise TooManyImagesError(1)
    image = images[0]
    if isinstance(image, ImageTooLargeError):
        raise image
    # Without a body the image is empty.
    return LensRequest(card.name, query.options(), image or None)


def _merged(query: GradModesQuery, body: bytes) -> GradModesRequest:
    if not body:
        return query
    try:
        stated = GradModesRequest.model_validate_json(body)
    except ValidationError as error:
        errors = error.errors(include_context=False)
        raise RequestValidationError(
            # A syntax error has no location.
            [{**each, "loc": ("body", *(each["loc"] or ("body",)))} for each in errors]
        ) from error
    return query.model_copy(update={name: getattr(stated, name) for name in stated.model_fields_set})


def request_body() -> dict[str, Any]:
    """Return the OpenAPI description of the request body."""
    binary = {"schema": {"type": "string", "format": "binary"}}
    files = {"type": "array", "items": binary["schema"], "minItems": 1, "maxItems": 1}
    return {
        "requestBody": {
            "required": False,
            "description": "The parameters as JSON, or one image to compare on, as the body or as a multipart file.",
            "content": {
                "application/json": {"schema": GradModesRequest.model_json_schema()},
                "image/*": binary,
                "application/octet-stream": binary,
                "multipart/form-data": {
                    "schema": {"type": "object", "properties": {"images": files}, "required": ["images"]}
                },
            },
        }
    }
