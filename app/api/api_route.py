"""The route class of every documented route: it rejects unknown and repeated query parameters."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Coroutine, Iterator
from difflib import get_close_matches
from functools import cached_property
from itertools import islice
from typing import Any
from urllib.parse import parse_qsl

from fastapi import Request
from fastapi.exceptions import RequestValidationError
from fastapi.openapi.utils import get_openapi
from fastapi.routing import APIRoute
from starlette.responses import Response

# Limits of an error message: parameters named, and characters of a name.
_MAX_NAMED = 4
_MAX_NAME_CHARACTERS = 64


class ApiRoute(APIRoute):
    """FastAPI ignores unknown parameters, and all but the last value of a repeated one. A misspelt parameter would go
    unnoticed."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handle = super().get_route_handler()

        async def handle_checked(request: Request) -> Response:
            query_string = request.scope["query_string"]
            if query_string and (errors := list(islice(self._query_errors(query_string), _MAX_NAMED))):
                raise RequestValidationError(errors)
            return await handle(request)

        return handle_checked

    def takes_query(self, query_string: bytes) -> bool:
        """Return True if each parameter is known, and occurs once unless it is a list. Values are not validated."""
        return not query_string or not any(self._query_errors(query_string))

    @cached_property
    def _parameters(self) -> dict[str, bool]:
        """The names of the query parameters, and whether each may be repeated."""
        # From the OpenAPI document: FastAPI has no other public API for the parameters of a route with dependencies.
        paths = get_openapi(title="", version="", routes=[self])["paths"]
        return {
            parameter["name"]: parameter["schema"].get("type") == "array"
            for path in paths.values()
            for operation in path.values()
            for parameter in operation.get("parameters", [])
            if parameter["in"] == "query"
        }

    def _query_errors(self, query_string: bytes) -> Iterator[dict[str, Any]]:
        """Yield the errors in the form of pydantic."""
        counts = Counter(name for name, _ in parse_qsl(query_string.decode("latin-1"), keep_blank_values=True))
        for name, count in counts.items():
            shown = name[:_MAX_NAME_CHARACTERS]
            if name not in self._parameters:
                message = f"unknown parameter; {self._suggestion(shown)}"
            elif count > 1 and not self._parameters[name]:
                message = f"given {count} times; it accepts one value"
            else:
                continue
            yield {"type": "query", "loc": ("query", shown), "msg": message, "input": None}

    def _suggestion(self, name: str) -> str:
        if similar := get_close_matches(name.lower(), self._parameters, 1):
            return f"did you mean {similar[0]}?"
        return f"this route accepts {', '.join(self._parameters) or 'none'}"
