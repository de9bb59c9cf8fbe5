"""Pages for browsers, served from memory: the web page, sample images and /docs. Their headers forbid requests to other
hosts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from hashlib import sha256
from pathlib import Path
from typing import get_args

import fastapi_offline
from fastapi import APIRouter, Request
from starlette.exceptions import HTTPException
from starlette.responses import Response

from models.images.samples import Sample, draw, encode

router = APIRouter(include_in_schema=False)

CONTENT_TYPES = {
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


@dataclass(frozen=True, slots=True)
class File:
    body: bytes
    content_type: str
    etag: str


def load_file(name: str, body: bytes) -> File:
    """Return `body` as a file whose content type follows from the suffix of `name`."""
    return File(body, CONTENT_TYPES[Path(name).suffix], f'"{sha256(body).hexdigest()[:16]}"')


def find_file(name: str, files: Mapping[str, File]) -> File:
    """Return the file called `name`. Raises HTTPException (404). Never reads from disk."""
    if name not in files:
        raise HTTPException(404)
    return files[name]


def file_response(request: Request, found: File, policy: str) -> Response:
    """Return the file with a Content-Security-Policy, or 304 if the client has it."""
    headers = {**_HEADERS, "Content-Security-Policy": policy, "ETag": found.etag}
    known = request.headers.get("if-none-match", "")
    if found.etag in {tag.strip().removeprefix("W/") for tag in known.split(",")}:
        return Response(status_code=304, headers=headers)
    return Response(found.body, headers=headers, media_type=found.content_type)


FOLDER = Path(__file__).parents[2] / "page"

_PAGE_POLICY = (
    "default-src 'none'; "
    "script-src 'self'; "
    "style-src 'self'; "
    # The page previews images as blob: and data: URLs before it sends them.
    "img-src 'self' blob: data:; "
    "connect-src 'self'; "
    "base-uri 'none'; "
    "form-action 'none'; "
    "frame-ancestors 'none'; "
    # The browser refuses to parse strings as HTML, which prevents script injection.
    "require-trusted-types-for 'script'; "
    "trusted-types 'none'"
)

_THUMBNAIL_SIDE = 112


@router.get("/")
def page(request: Request) -> Response:
    return file_response(request, _page_files()["index.html"], _PAGE_POLICY)


@router.get("/page/{name}")
def page_file(request: Request, name: str) -> Response:
    return file_response(request, find_file(name, _page_files()), _PAGE_POLICY)


@router.get("/samples/{name}")
def sample(request: Request, name: str) -> Response:
    return file_response(request, find_file(name, _samples()), _PAGE_POLICY)


@cache
def _page_files() -> dict[str, File]:
    """Return the files of the page, and thumbnails of the samples."""
    paths = [path for path in FOLDER.iterdir() if path.suffix in CONTENT_TYPES]
    files = {path.name: load_file(path.name, path.read_bytes()) for path in paths}
    for sample_name in get_args(Sample):
        picture = draw(sample_name)
        picture.thumbnail((_THUMBNAIL_SIDE, _THUMBNAIL_SIDE))
        name = f"{sample_name}.jpg"
        files[name] = load_file(name, encode(picture, "JPEG"))
    return files


@cache
def _samples() -> dict[str, File]:
    names = {f"{sample_name}.jpg": draw(sample_name) for sample_name in get_args(Sample)}
    return {name: load_file(name, encode(picture, "JPEG")) for name, picture in names.items()}


_DOCUMENTATION = Path(__file__).parents[2] / "documentation"
_SWAGGER_UI = Path(fastapi_offline.__file__).parent / "static"

_DOCUMENTATION_POLICY = (
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
    return file_response(request, _documentation_files()["index.html"], _DOCUMENTATION_POLICY)


@router.get("/docs/{name}")
def documentation_file(request: Request, name: str) -> Response:
    return file_response(request, find_file(name, _documentation_files()), _DOCUMENTATION_POLICY)


@cache
def _documentation_files() -> dict[str, File]:
    paths = [_DOCUMENTATION / "index.html", _DOCUMENTATION / "start.js"]
    paths += [_SWAGGER_UI / "swagger-ui.css", _SWAGGER_UI / "swagger-ui-bundle.js"]
    return {path.name: load_file(path.name, path.read_bytes()) for path in paths}
