"""GET /: the web page, whose headers forbid requests to other hosts; GET /samples: sample images."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import get_args

from fastapi import APIRouter, Request
from starlette.responses import Response

from app.api.static_files import CONTENT_TYPES, File, file_response, find_file, load_file
from models.images.samples import Sample, draw, encode

router = APIRouter(include_in_schema=False)

FOLDER = Path(__file__).parents[2] / "page"

_POLICY = (
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
    return file_response(request, _page_files()["index.html"], _POLICY)


@router.get("/page/{name}")
def page_file(request: Request, name: str) -> Response:
    return file_response(request, find_file(name, _page_files()), _POLICY)


@router.get("/samples/{name}")
def sample(request: Request, name: str) -> Response:
    return file_response(request, find_file(name, _samples()), _POLICY)


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
