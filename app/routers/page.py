"""GET /: the page. Its files are read once and served from memory, under headers that let it load and ask nothing
from elsewhere; and GET /samples: pictures to try it with."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from hashlib import sha256
from pathlib import Path
from typing import get_args

from fastapi import APIRouter, Request
from starlette.exceptions import HTTPException
from starlette.responses import Response

from models.samples import Sample, draw, encode

router = APIRouter(include_in_schema=False)

FOLDER = Path(__file__).parents[1] / "page"

_METHODS = ["GET", "HEAD"]
_CONTENT_TYPES = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
    ".jpg": "image/jpeg",
}
_POLICY = (
    "default-src 'none'; "
    "script-src 'self'; "
    "style-src 'self'; "
    # blob: and data: are the pictures that the page shows before it sends them.
    "img-src 'self' blob: data:; "
    "connect-src 'self'; "
    "base-uri 'none'; "
    "form-action 'none'; "
    "frame-ancestors 'none'; "
    # No string becomes HTML, not by a mistake in the page's own code either.
    "require-trusted-types-for 'script'; "
    "trusted-types 'none'"
)
_HEADERS = {
    "Content-Security-Policy": _POLICY,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    # Asked for again each time, and sent only where it has changed: files of two versions never meet.
    "Cache-Control": "no-cache",
}

_THUMBNAIL_SIDE = 112


@dataclass(frozen=True, slots=True)
class _File:
    body: bytes
    content_type: str
    etag: str


@router.api_route("/", methods=_METHODS)
def page(request: Request) -> Response:
    return _answer(request, _page_files()["index.html"])


@router.api_route("/page/{name}", methods=_METHODS)
def page_file(request: Request, name: str) -> Response:
    return _answer(request, _named(name, _page_files()))


@router.api_route("/samples/{name}", methods=_METHODS)
def sample(request: Request, name: str) -> Response:
    return _answer(request, _named(name, _samples()))


def _named(name: str, files: dict[str, _File]) -> _File:
    # A name in a table, never a path on a disk.
    if name not in files:
        raise HTTPException(404)
    return files[name]


def _answer(request: Request, file: _File) -> Response:
    headers = {**_HEADERS, "ETag": file.etag}
    known = request.headers.get("if-none-match", "")
    if file.etag in {tag.strip().removeprefix("W/") for tag in known.split(",")}:
        return Response(status_code=304, headers=headers)
    return Response(file.body, headers=headers, media_type=file.content_type)


@cache
def _page_files() -> dict[str, _File]:
    """The folder's files, and beside them the samples as thumbnails."""
    paths = [path for path in FOLDER.iterdir() if path.suffix in _CONTENT_TYPES]
    files = {path.name: _file(path.name, path.read_bytes()) for path in paths}
    for sample_name in get_args(Sample):
        picture = draw(sample_name)
        picture.thumbnail((_THUMBNAIL_SIDE, _THUMBNAIL_SIDE))
        name = f"{sample_name}.jpg"
        files[name] = _file(name, encode(picture, "JPEG"))
    return files


@cache
def _samples() -> dict[str, _File]:
    names = {f"{sample_name}.jpg": draw(sample_name) for sample_name in get_args(Sample)}
    return {name: _file(name, encode(picture, "JPEG")) for name, picture in names.items()}


def _file(name: str, body: bytes) -> _File:
    return _File(body, _CONTENT_TYPES[Path(name).suffix], f'"{sha256(body).hexdigest()[:16]}"')
