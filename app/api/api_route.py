"""The route of everything that the OpenAPI document describes: it takes the query parameters that stand there, each
once, and no others."""

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

# Of wrong parameters, and of the name of one, as many as help to find the mistake.
_MOST_NAMED = 4
_MOST_CHARACTERS = 64


class ApiRoute(APIRoute):
    """FastAPI ignores parameters that a route does not have, and all but the last of one that comes twice: a client
    that misspells one would never know."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handle = super().get_route_handler()

        async def handle_known(request: Request) -> Response:
            self.check_query(request.scope["query_string"])
            return await handle(request)

        return handle_known

    def check_query(self, query_string: bytes) -> None:
        """Raises RequestValidationError, which names the parameters at fault."""
        if not query_string:
            return
        faults = list(self._query.faults(query_string))
        if faults:
            raise RequestValidationError(faults)

    def takes_query(self, query_string: bytes) -> bool:
        """Whether each parameter is one of this route's, and comes once unless it is a list. Values are not looked
        at."""
        return not query_string or not any(self._query.faults(query_string))

    @cached_property
    def _query(self) -> _QueryParameters:
        # As it is documented; FastAPI has no other public way to tell the parameters of a route with dependencies.
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
    """The names of a route's parameters, and those of them that may come more than once."""

    names: tuple[str, ...]
    lists: frozenset[str]

    def faults(self, query_string: bytes) -> Iterator[dict[str, Any]]:
        """As pydantic states faults, the first few."""
        counts = Counter(name for name, _ in parse_qsl(query_string.decode("latin-1"), keep_blank_values=True))
        left = _MOST_NAMED
        for name, count in counts.items():
            if name not in self.names:
                message = self._unknown(name[:_MOST_CHARACTERS])
            elif count > 1 and name not in self.lists:
                message = f"given {count} times; it takes one value"
            else:
                continue
            yield {"type": "query", "loc": ("query", name[:_MOST_CHARACTERS]), "msg": message, "input": None}
            left -= 1
            if not left:
                return

    def _unknown(self, name: str) -> str:
        alike = get_close_matches(name.lower(), self.names, 1)
        if alike:
            return f"no parameter of this route; did you mean {alike[0]}?"
        if self.names:
            return f"no parameter of this route, which takes {', '.join(self.names)}"
        return "no parameter of this route, which takes none"
