"""GET /docs: the OpenAPI document in Swagger UI, without requests to other hosts."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import fastapi_offline
from fastapi import APIRouter, Request
from starlette.responses import Response

from app.api.static_files import File, file_response, find_file, load_file

router = APIRouter(include_in_schema=False)

_FOLDER = Path(__file__).parents[2] / "documentation"
_SWAGGER_UI = Path(fastapi_offline.__file__).parent / "static"

_POLICY = (
    "default-src 'none'; "
    "script-src 'self'; "
    "style-src 'self'; "
    # The style sheet of Swagger UI has icons as data: URLs.
    "img-src 'self' data:; "
    "connect-src 'self'; "
    "base-uri 'none'; "
    "form-action 'none'; "
    "frame-ancestors 'none'"
)


@router.get("/docs")
def documentation(request: Request) -> Response:
    return file_response(request, _files()["index.html"], _POLICY)


@router.get("/docs/{name}")
def documentation_file(request: Request, name: str) -> Response:
    return file_response(request, find_file(name, _files()), _POLICY)


@cache
def _files() -> dict[str, File]:
    paths = [_FOLDER / "index.html", _FOLDER / "start.js"]
    paths += [_SWAGGER_UI / "swagger-ui.css", _SWAGGER_UI / "swagger-ui-bundle.js"]
    return {path.name: load_file(path.name, path.read_bytes()) for path in paths}
