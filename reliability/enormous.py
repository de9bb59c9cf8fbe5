"""Requests that state, hold or expand to far more than is accepted."""

from __future__ import annotations

import json
import zlib
from collections.abc import Iterator
from typing import Any

from app.http.contract import TENSORS_AT
from reliability.protocols import INFER
from reliability.wire import Request, post

_MUCH = 60_000_000
# Below the limit of the Open Inference Protocol's JSON.
_LESS = 16_000_000
_INFER_PATH, _JSON_AT = "/v2/models/null/infer", "/v1/embeddings"
_JSON_ROUTES = {
    _JSON_AT: "input",
    "/v1/models/null:predict": "instances",
    "/hf/null": "inputs",
    "/v1/classify": "images",
    _INFER_PATH: "inputs",
}
_JSON_VALUES = {
    "strings": b'["A",',
    "a string": b'"A',
    "nested lists": b"[",
    "numbers": b"[0,",
    "escapes": b'"\\n',
    "long numbers": b"[" + b"9" * 4000 + b",",
}
_FORM = b"--b\r\nContent-Disposition: form-data; name=image; filename=a.png\r\n\r\nA\r\n--b"
_FORM_TYPE = "multipart/form-data; boundary=b"


def enormous() -> Iterator[tuple[str, Request]]:
    """Yield the name of each and the request."""
    for shape in ([2**31], [2**32], [2**31, 2**31], [0, 2**32]):
        for datatype in ("BYTES", "UINT8", "FP32"):
            tensor = {"name": "x", "datatype": datatype, "shape": shape}
            name = f"{datatype} {shape}"
            head = json.dumps({"inputs": [tensor]}).encode()
            yield name, post(_INFER_PATH, head + bytes(8), more=f"{TENSORS_AT}: {len(head)}\r\n")
            for data in (["/9j/"], [0]):
                yield name, post(_INFER_PATH, json.dumps({"inputs": [tensor | {"data": data}]}).encode())
            yield name, _call(inputs=[tensor], raw_input_contents=[bytes(8)])
    numbers = {"uint_contents": [0] * (_MUCH // 4)}
    yield "typed contents", _call(inputs=[{"datatype": "UINT8", "shape": [1, 3, 224, 224], "contents": numbers}])
    empty_input = _call(inputs=[{}]).wire[-2:]
    yield "fields", Request(empty_input * (_MUCH // 4), INFER.path)
    bomb = _bomb(4 * _MUCH)
    yield "bomb", Request(bomb, INFER.path)
    for more in ("", f"{TENSORS_AT}: 9\r\n"):
        yield "bomb", post(_INFER_PATH, bomb, more=f"Content-Encoding: gzip\r\n{more}")
    for path in _JSON_ROUTES:
        yield f"bomb to {path}", post(path, bomb, more="Content-Encoding: gzip\r\n")
        if path != _JSON_AT:
            yield f"JSON of strings to {path}", _json(path, _JSON_VALUES["strings"], _MUCH)
    for kind, value in _JSON_VALUES.items():
        yield f"JSON of {kind} to {_JSON_AT}", _json(_JSON_AT, value, _MUCH)
        yield f"JSON of {kind} to {_INFER_PATH}", _json(_INFER_PATH, value, _LESS)
    for kind, much in (("spaces", b" "), ("boundaries", b"?\r\n--b")):
        body = _FORM + much * (_MUCH // len(much))
        yield f"form of {kind}", post("/v1/classify", body, content_type=_FORM_TYPE)


def _call(**fields: Any) -> Request:
    return Request(INFER.request(model_name="null", **fields).SerializeToString(), INFER.path)


def _json(path: str, value: bytes, size: int) -> Request:
    """Return a request with a list that has a value over and over, or one long string, or lists within lists."""
    begin, repeated = value[:1], value[1:] or value
    end = begin if begin == b'"' else b""
    body = b'{"%s":[' % _JSON_ROUTES[path].encode() + begin + repeated * (size // len(repeated))
    return post(path, body + end + b"]}", content_type="application/json")


def _bomb(size: int) -> bytes:
    stream, piece = zlib.compressobj(1, wbits=31), bytes(2**20)
    return b"".join([stream.compress(b"["), *(stream.compress(piece) for _ in range(size >> 20)), stream.flush()])
