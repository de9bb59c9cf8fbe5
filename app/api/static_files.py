"""Files for browsers, read once and served from memory by name."""

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
