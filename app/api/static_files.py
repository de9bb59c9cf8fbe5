"""Files that browsers get: read once, and served from memory by name."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

from fastapi import Request
from starlette.exceptions import HTTPException
from starlette.responses import Response

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
    # Asked for again each time, and sent only where it has changed: files of two versions never meet.
    "Cache-Control": "no-cache",
}


@dataclass(frozen=True, slots=True)
class File:
    body: bytes
    content_type: str
    etag: str


def file(name: str, body: bytes) -> File:
    """`body` as what the ending of `name` says that it is."""
    return File(body, CONTENT_TYPES[Path(name).suffix], f'"{sha256(body).hexdigest()[:16]}"')


def named(name: str, files: Mapping[str, File]) -> File:
    """The file of that name, in a table and never on a disk. Raises HTTPException, 404."""
    if name not in files:
        raise HTTPException(404)
    return files[name]


def answer(request: Request, found: File, policy: str) -> Response:
    """The file, or 304 for who has it, under a Content-Security-Policy."""
    headers = {**_HEADERS, "Content-Security-Policy": policy, "ETag": found.etag}
    known = request.headers.get("if-none-match", "")
    if found.etag in {tag.strip().removeprefix("W/") for tag in known.split(",")}:
        return Response(status_code=304, headers=headers)
    return Response(found.body, headers=headers, media_type=found.content_type)
