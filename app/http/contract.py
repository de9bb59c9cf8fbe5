"""The protocols that clients speak: each has a label in the metrics, and its own form of an error."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from pydantic_core import to_json
from starlette.responses import Response

from app.http.problems import INTERNAL_ERROR, TABLE, ContentEncodingError, Row, problem_response

# Writes an error as a response: its row, detail, request id and headers.
ErrorForm = Callable[[Row, str | None, str | None, Mapping[str, str] | None], Response]

# Where the tensors of a body begin in the Open Inference Protocol.
TENSORS_AT = "Inference-Header-Content-Length"

_BAD_REQUEST = 400
# Statuses that other protocols do not distinguish from 400.
_BAD_INPUT = frozenset({415, 422})


@dataclass(frozen=True, slots=True)
class Contract:
    """A protocol. `name` is its label in the metrics. `item` says where in a request an image is, by its position."""

    name: str
    error_response: ErrorForm
    item: str = "image {}"


NATIVE = Contract("native", problem_response)


def json_errors(body: Callable[[int, Row, str], object]) -> ErrorForm:
    """Return the form of a protocol whose errors are JSON objects: `body` makes one of status, row and message."""

    def error_response(
        row: Row, detail: str | None, _request_id: str | None, headers: Mapping[str, str] | None
    ) -> Response:
        status = contract_status(row)
        # As problems do, an internal error tells no detail.
        message = row.title if detail is None or row.status == INTERNAL_ERROR.status else detail
        # Some clients read the body only if the type is exactly this one.
        return Response(to_json(body(status, row, message)), status, headers=headers, media_type="application/json")

    return error_response


def text_error(_status: int, _row: Row, message: str) -> object:
    """Return the body of an error that is a text."""
    return {"error": message}


def contract_status(row: Row) -> int:
    """Return the status of a problem in other protocols than the native one: every fault of the input is 400."""
    if row.status in _BAD_INPUT and row is not TABLE[ContentEncodingError]:
        return _BAD_REQUEST
    return row.status
