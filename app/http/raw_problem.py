"""A problem as the bytes of a whole answer, for what is refused before the application hears of it."""

from __future__ import annotations

from collections.abc import Mapping
from http import HTTPStatus

from app.http.problems import CONTENT_TYPE, Row, problem


def answer_bytes(
    row: Row, detail: str, request_id: str | None = None, headers: Mapping[str, str] | None = None, *, last: bool
) -> bytes:
    """Head and body of an HTTP/1.1 answer; `last`: the connection ends with it."""
    body = problem(row, detail, request_id).model_dump_json(exclude_none=True).encode()
    lines = [f"HTTP/1.1 {row.status} {HTTPStatus(row.status).phrase}"]
    lines += [f"content-type: {CONTENT_TYPE}", f"content-length: {len(body)}"]
    lines += [f"{name}: {value}" for name, value in (headers or {}).items()]
    if last:
        lines.append("connection: close")
    return "\r\n".join([*lines, "", ""]).encode("latin-1") + body
