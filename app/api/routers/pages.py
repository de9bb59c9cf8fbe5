"""Pages for browsers, served from memory: the web page, sample images and /docs. Their headers forbid requests to other
hosts."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cache
from hashlib import sha256
from pathlib import Path
from typing import NamedTuple, get_args

import fastapi_offline
from fastapi import APIRouter, Request
from starlette.exceptions import HTTPException
from starlette.responses import Response

from models.images.samples import Sample, draw, encode

router = APIRouter(include_in_schema=False)

FOLDER = Path(__file__).parents[2] / "page"
_DOCUMENTATION = Path(__file__).parents[2] / "documentation"
_SWAGGER_UI = Path(fastapi_offline.__file__).parent / "static"

_THUMBNAIL_SIDE = 112

_CONTENT_TYPES = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
    ".jpg": "image/jpeg",
}
_HEADERS = {
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    # Browsers revalidate each file, so that files of two versions are never mixed.
    "Cache-Control": "no-cache",
}

_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'; "
)
# The page previews images as blob: and data: URLs before it sends them. The browser refuses to parse strings as HTML,
# which prevents script injection.
_PAGE_POLICY = _POLICY + "img-src 'self' blob: data:; require-trusted-types-for 'script'; trusted-types 'none'"
# The style sheet of Swagger UI has icons as data: URLs.
_DOCUMENTATION_POLICY = _POLICY + "img-src 'self' data:"


class _File(NamedTuple):
    body: bytes
    content_type: str
    etag: str


def _file(name: str, body: bytes) -> _File:
    return _File(body, _CONTENT_TYPES[Path(name).suffix], f'"{sha256(body).hexdigest()[:16]}"')


@cache
def _page_files() -> Mapping[str, _File]:
    """Return the files of the page, and thumbnails of the samples."""
    files = {path.name: path.read_bytes() for path in FOLDER.iterdir() if path.suffix in _CONTENT_TYPES}
    for sample in get_args(Sample):
        picture = draw(sample)
        picture.thumbnail((_THUMBNAIL_SIDE, _THUMBNAIL_SIDE))
        files[f"{sample}.jpg"] = encode(picture, "JPEG")
    return {name: _file(name, body) for name, body in files.items()}


@cache
def _samples() -> Mapping[str, _File]:
    names = {f"{sample}.jpg": draw(sample) for sample in get_args(Sample)}
    return {name: _file(name, encode(picture, "JPEG")) for name, picture in names.items()}


@cache
def _documentation_files() -> Mapping[str, _File]:
    paths = [_DOCUMENTATION / "index.html", _DOCUMENTATION / "start.js"]
    paths += [_SWAGGER_UI / "swagger-ui.css", _SWAGGER_UI / "swagger-ui-bundle.js"]
    return {path.name: _file(path.name, path.read_bytes()) for path in paths}


def _serve(path: str, files: Callable[[], Mapping[str, _File]], policy: str) -> None:
    """Serve the files by `{name}`, or index.html at a path without it. Nothing is read from disk for a name."""

    def respond(request: Request) -> Response:
        found = files().get(request.path_params.get("name", "index.html"))
        if found is None:
            raise HTTPException(404)
        headers = {**_HEADERS, "Content-Security-Policy": policy, "ETag": found.etag}
        known = request.headers.get("if-none-match", "")
        if found.etag in {tag.strip().removeprefix("W/") for tag in known.split(",")}:
            return Response(status_code=304, headers=headers)
        return Response(found.body, headers=headers, media_type=found.content_type)

    router.add_api_route(path, respond)


_serve("/", _page_files, _PAGE_POLICY)
_serve("/page/{name}", _page_files, _PAGE_POLICY)
_serve("/samples/{name}", _samples, _PAGE_POLICY)
_serve("/docs", _documentation_files, _DOCUMENTATION_POLICY)
_serve("/docs/{name}", _documentation_files, _DOCUMENTATION_POLICY)
