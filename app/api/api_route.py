"""The route class of every documented route: it rejects unknown and repeated query parameters."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Coroutine, Iterator
from difflib import get_close_matches
from functools import cached_property
from typing import Any, NamedTuple
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
            self.check_query(request.scope["query_string"])
            return await handle(request)

        return handle_checked

    def check_query(self, query_string: bytes) -> None:
        """Raise RequestValidationError if there are unknown or repeated parameters. It names them."""
        if not query_string:
            return
        errors = list(self._query.errors(query_string))
        if errors:
            raise RequestValidationError(errors)

    def takes_query(self, query_string: bytes) -> bool:
        """Return True if each parameter is known, and occurs once unless it is a list. Values are not validated."""
        return not query_string or not any(self._query.errors(query_string))

    @cached_property
    def _query(self) -> _QueryParameters:
        # From the OpenAPI document: FastAPI has no other public API for the parameters of a route with dependencies.
        paths = get_openapi(title="", version="", routes=[self])["paths"]
        operations = [operation for path in paths.values() for operation in path.values()]
        schemas = {
            parameter["name"]: parameter["schema"]
            for operation in operations
            for parameter in operation.get("parameters", [])
            if parameter["in"] == "query"
        }
        lists = frozenset(name for name, schema in schemas.items() if schema.get("type") == "array")
        return _QueryParameters(tuple(schemas), lists)


class _QueryParameters(NamedTuple):
    """The names of a route's parameters, and those that may be repeated."""

    names: tuple[str, ...]
    lists: frozenset[str]

    def errors(self, query_string: bytes) -> Iterator[dict[str, Any]]:
        """Yield the first few errors, in the form of pydantic."""
        counts = Counter(name for name, _ in parse_qsl(query_string.decode("latin-1"), keep_blank_values=True))
        remaining = _MAX_NAMED
        for name, count in counts.items():
            if name not in self.names:
                message = self._unknown(name[:_MAX_NAME_CHARACTERS])
            elif count > 1 and name not in self.lists:
                message = f"given {count} times; it accepts one value"
            else:
                continue
            yield {"type": "query", "loc": ("query", name[:_MAX_NAME_CHARACTERS]), "msg": message, "input": None}
            remaining -= 1
            if not remaining:
                return

    def _unknown(self, name: str) -> str:
        similar = get_close_matches(name.lower(), self.names, 1)
        if similar:
            return f"unknown parameter; did you mean {similar[0]}?"
        if self.names:
            return f"unknown parameter; this route accepts {', '.join(self.names)}"
        return "unknown parameter; this route accepts none"
