"""The endpoints that accept images, in one table.

Routers take path, task and documented errors from it. Each endpoint sends Server-Timing; load shedding answers those
that are `sheddable`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from app.api.inference import PREDICTION_ERRORS
from app.http.problems import NoSearchIndexError
from models.images.formats import TITLES
from models.interface.errors import NoClassesError
from models.interface.telemetry import Task

_BINARY = {"type": "string", "format": "binary"}

# The OpenAPI request body of every endpoint.
IMAGE_BODY: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "description": f"One image file ({', '.join(TITLES)}), or several as multipart files.",
        "content": {
            "image/*": {"schema": _BINARY},
            "application/octet-stream": {"schema": _BINARY},
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "properties": {"images": {"type": "array", "items": _BINARY, "minItems": 1}},
                    "required": ["images"],
                }
            },
        },
    }
}


@dataclass(frozen=True, slots=True)
class ImageEndpoint:
    """A POST endpoint that accepts images. `task` is the task of the runtime and a label of the metrics.
    `sheddable` endpoints have no check before admission that a refusal at the headers would skip."""

    path: str
    task: Task
    errors: tuple[type[Exception], ...]
    sheddable: bool


CLASSIFY = ImageEndpoint("/v1/classify", "classify", (*PREDICTION_ERRORS, NoClassesError), sheddable=True)
FEATURES = ImageEndpoint("/v1/features", "features", PREDICTION_ERRORS, sheddable=True)
# A service without an index answers 404, also when it is overloaded.
SEARCH = ImageEndpoint("/v1/search", "search", (NoSearchIndexError, *PREDICTION_ERRORS), sheddable=False)

IMAGE_ENDPOINTS = (CLASSIFY, FEATURES, SEARCH)
