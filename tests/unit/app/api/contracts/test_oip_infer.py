"""POST /v2/models/NAME/infer: images in every form, outputs in JSON and in binary, and what is refused."""

from __future__ import annotations

import base64
import gzip
import json
import random
import zlib
from collections import Counter
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from typing import Any

import httpx2
import numpy as np
import pytest

from app.api.contracts.tensors import join_elements
from models.interface.errors import UndecodableImageError
from models.interface.request import InferenceRequest, ReadyPixels
from models.interface.results import Answer, Prediction

pytestmark = pytest.mark.anyio

Serve = Callable[..., AbstractAsyncContextManager[httpx2.AsyncClient]]

_URL = "/v2/models/fake/infer"
_AT = "Inference-Header-Content-Length"
_ONE, _TWO = b"\xffone", b"\xfftwo"
# The fake model's probabilities and features.
_PROBABILITIES = [0.5 / (index + 1) for index in range(10)]
_FEATURES = [3.0, 0.0, 4.0]


@pytest.fixture
def received(prediction: Callable[..., Prediction]) -> tuple[list[InferenceRequest], dict[str, Any]]:
    """The requests of the runtime, and the options of a runtime that records them; it cannot decode `bad`."""
    noted: list[InferenceRequest] = []

    async def predict(_model: str | None, request: InferenceRequest) -> Answer:
        noted.append(request)
        fault = UndecodableImageError("PNG", "it is cut short")
        results = [
            fault if image == b"\xffbad" else prediction(request.top_k, dense=request.all_probabilities)
            for image in request.images
        ]
        return Answer("fake", "0123456789abcdef", 3, (3,), results, 1)

    return noted, {"predict": predict}


def _message(tensors: bytes, shape: list[int], datatype: str = "BYTES", **request: Any) -> dict[str, Any]:
    """Return the arguments of a POST with a binary tensor."""
    sized = {"binary_data_size": len(tensors)}
    stated = {"name": "image", "shape": shape, "datatype": datatype, "parameters": sized}
    head = json.dumps({"inputs": [stated], **request}).encode()
    return {"content": head + tensors, "headers": {_AT: str(len(head))}}


def _files(*files: bytes, **request: Any) -> dict[str, Any]:
    return _message(join_elements(files), [len(files), 1], **request)


def _listed(data: object, shape: list[int], datatype: str = "BYTES", **request: Any) -> dict[str, Any]:
    """Return the arguments of a POST with the tensor in JSON."""
    stated = {"name": "input-0", "shape": shape, "datatype": datatype, "data": data}
    return {"json": {"inputs": [stated], **request}}


def _text(image: bytes) -> str:
    return base64.b64encode(image).decode()


def _outputs(response: httpx2.Response) -> dict[str, Any]:
    """Return the outputs of an answer by name: lists from JSON, bytes from behind it."""
    assert response.status_code == 200, response.text
    body, at = response.content, len(response.content)
    if _AT in response.headers:
        assert response.headers["content-type"] == "application/octet-stream"
        at = int(response.headers[_AT])
    else:
        assert response.headers["content-type"] == "application/json"
    found: dict[str, Any] = {}
    for output in json.loads(body[:at])["outputs"]:
        # One or the other, as Triton's C++ client needs it.
        assert ("data" in output) != ("parameters" in output)
        if "data" in output:
            found[output["name"]] = output["data"]
        else:
            size = output["parameters"]["binary_data_size"]
            found[output["name"]] = body[at : at + size]
            at += size
    assert at == len(body)
    return found


def _error(response: httpx2.Response) -> tuple[int, str]:
    assert response.headers["content-type"] == "application/json"
    [(key, message)] = response.json().items()
    assert key == "error"
    return response.status_code, message


async def test_files_are_sent_in_binary_in_json_as_rows_of_bytes_and_raw(
    serve: Serve, received: tuple[list[InferenceRequest], dict[str, Any]]
) -> None:
    noted, runtime = received
    rows = np.frombuffer(_ONE + _TWO, np.uint8)
    uri = f"data:image/png;base64,{_text(_TWO)}"
    head = json.dumps({"inputs": [{"name": "x", "shape": [2], "datatype": "BYTES"}]}).encode()
    bodies = [
        _files(_ONE, _TWO),
        _files(_text(_ONE).encode(), _TWO),
        _listed([_text(_ONE), uri], [2, 1]),
        _listed([[_text(_ONE)], [uri]], [2, 1]),
        _message(rows.tobytes(), [2, 4], "UINT8"),
        _listed(rows.tolist(), [2, 4], "UINT8"),
        # Without a size the tensor is the rest.
        {"content": head + join_elements([_ONE, _TWO]), "headers": {_AT: str(len(head))}},
    ]
    async with serve(runtime) as client:
        for body in bodies:
            assert len(_outputs(await client.post(_URL, **body))["probabilities"]) == 20
        raw = await client.post(_URL, content=_ONE, headers={_AT: "0"})

    assert [list(request.images) for request in noted] == [[_ONE, _TWO]] * len(bodies) + [[_ONE]]
    np.testing.assert_allclose(np.frombuffer(_outputs(raw)["probabilities"], "<f4"), _PROBABILITIES, rtol=1e-6)


@pytest.mark.parametrize(("view", "normalized"), [("fake", True), ("fake@tensor", True), ("fake@pixels", False)])
async def test_pixels_are_ready_and_floats_are_what_the_view_says(
    serve: Serve, received: tuple[list[InferenceRequest], dict[str, Any]], view: str, *, normalized: bool
) -> None:
    noted, runtime = received
    pixels = np.zeros((2, 3, 32, 32), "<f4")
    async with serve(runtime) as client:
        url = f"/v2/models/{view}/infer"
        _outputs(await client.post(url, **_message(pixels.tobytes(), [2, 3, 32, 32], "FP32")))
        _outputs(await client.post(url, **_listed(pixels.tolist(), [2, 3, 32, 32], "FP32")))
        _outputs(await client.post(url, **_message(bytes(3072), [32, 32, 3], "UINT8")))

    images = [image for request in noted for image in request.images if isinstance(image, ReadyPixels)]
    assert [(image.values.shape, image.normalized) for image in images] == [((3, 32, 32), normalized)] * 4 + [
        ((3, 32, 32), False)
    ]


async def test_outputs_are_binary_where_that_is_asked_for(serve: Serve) -> None:
    outputs = [{"name": "features", "parameters": {"binary_data": False}}, {"name": "probabilities"}]
    async with serve() as client:
        plain = await client.post(_URL, **_files(_ONE))
        binary = _outputs(await client.post(_URL, **_files(_ONE, parameters={"binary_data_output": True})))
        mixed = _outputs(
            await client.post(_URL, **_files(_ONE, outputs=outputs, parameters={"binary_data_output": True}))
        )

    assert plain.json() == {
        "model_name": "fake",
        "model_version": "1",
        "parameters": {"fingerprint": "0123456789abcdef"},
        "outputs": [
            {"name": "probabilities", "datatype": "FP32", "shape": [1, 10], "data": pytest.approx(_PROBABILITIES)}
        ],
    }
    for found in (binary, mixed):
        np.testing.assert_allclose(np.frombuffer(found["probabilities"], "<f4"), _PROBABILITIES, rtol=1e-6)
    assert mixed["features"] == _FEATURES


async def test_the_view_chooses_the_output_and_the_id_is_returned(
    serve: Serve, received: tuple[list[InferenceRequest], dict[str, Any]]
) -> None:
    noted, runtime = received
    async with serve(runtime) as client:
        response = await client.post("/v2/models/fake%40features/versions/1/infer", **_files(_ONE, id="mine"))

    assert _outputs(response) == {"features": _FEATURES}
    assert (response.json()["id"], response.json()["model_name"]) == ("mine", "fake@features")
    assert noted[0].task == "features"


async def test_classification_gives_the_likeliest_classes_as_texts(
    serve: Serve, received: tuple[list[InferenceRequest], dict[str, Any]]
) -> None:
    noted, runtime = received
    classes = {"name": "probabilities", "parameters": {"classification": 2}}
    everything = {"name": "probabilities", "parameters": {"classification": 999, "binary_data": True}}
    async with serve(runtime) as client:
        response = await client.post(_URL, **_files(_ONE, _TWO, outputs=[classes]))
        binary = _outputs(await client.post(_URL, **_files(_ONE, outputs=[everything])))

    texts = ["0.500000:0:class 0", "0.250000:1:class 1"]
    assert _outputs(response) == {"probabilities": texts * 2}
    [output] = response.json()["outputs"]
    assert (output["datatype"], output["shape"]) == ("BYTES", [2, 2])
    assert binary["probabilities"].startswith(join_elements([text.encode() for text in texts]))
    assert [(request.top_k, request.all_probabilities) for request in noted] == [(2, False), (10, False)]


@pytest.mark.parametrize(
    "outputs",
    [
        [{"name": "logits"}],
        [{"name": "features"}, {"name": "features"}],
        [{"name": "features", "parameters": {"classification": 1}}],
        [{"name": "probabilities", "parameters": {"classification": 0}}],
    ],
)
async def test_outputs_that_there_are_not_are_refused(serve: Serve, outputs: list[Any]) -> None:
    async with serve() as client:
        assert _error(await client.post(_URL, **_files(_ONE, outputs=outputs)))[0] == 400


async def test_bodies_are_compressed_in_both_directions(serve: Serve) -> None:
    binary = {"binary_data_output": True}
    sent = _files(*[_ONE] * 60, parameters=binary)
    for coding, encode, decode in (
        ("gzip", gzip.compress, gzip.decompress),
        ("deflate", zlib.compress, zlib.decompress),
    ):
        async with serve() as client:
            url, headers = _URL, {**sent["headers"], "Content-Encoding": coding, "Accept-Encoding": coding}
            async with client.stream("POST", url, content=encode(sent["content"]), headers=headers) as response:
                raw = b"".join([chunk async for chunk in response.aiter_raw()])
            several = await client.post(url, **sent)
            small = await client.post(
                url, json=_listed([_text(_ONE)], [1])["json"], headers={"Accept-Encoding": coding}
            )

        assert response.headers["content-encoding"] == coding
        assert int(response.headers["content-length"]) == len(raw)
        assert decode(raw) == several.content
        assert response.headers[_AT] == several.headers[_AT]
        # The list of codings that a library sends by itself asks for nothing.
        assert "content-encoding" not in several.headers
        assert "content-encoding" not in small.headers


async def test_what_a_body_expands_to_has_a_limit(serve: Serve) -> None:
    async with serve(max_request_bytes=100_000, max_image_bytes=90_000, max_held_bytes=200_000) as client:
        headers = {_AT: "0", "Content-Encoding": "gzip"}
        bomb = await client.post(_URL, content=gzip.compress(bytes(2**24)), headers=headers)
        ends_early = await client.post(_URL, content=gzip.compress(_ONE)[:-1], headers=headers)
        twice = await client.post(_URL, content=b"x", headers=headers | {"Content-Encoding": "gzip, gzip"})
        unknown = await client.post(_URL, content=b"x", headers=headers | {"Content-Encoding": "br"})
        fits = await client.post(_URL, content=gzip.compress(bytes(80_000)), headers=headers)

    assert _error(bomb)[0] == 413
    assert _error(ends_early)[0] == 400
    for refused in (twice, unknown):
        assert _error(refused)[0] == 415
        assert refused.headers["accept-encoding"] == "deflate, gzip, identity"
    assert fits.status_code == 200


def _stated(**input_: Any) -> dict[str, Any]:
    return {"json": {"inputs": [{"name": "x", "shape": [1], "datatype": "BYTES"} | input_]}}


_SHARED = {"parameters": {"shared_memory_region": "r", "shared_memory_byte_size": 4}}


@pytest.mark.parametrize(
    ("body", "status", "message"),
    [
        ({"content": b"no JSON"}, 400, "not valid JSON"),
        ({"content": b"[]"}, 400, "JSON object"),
        ({"json": {}}, 400, "inputs"),
        ({"json": {"inputs": []}}, 400, "inputs"),
        ({"json": {"inputs": [{}, {}]}}, 400, "inputs"),
        (_stated(), 400, "no data"),
        (_stated(data="text"), 400, "data"),
        (_stated(shape=[-1], data=[]), 400, "shape"),
        (_stated(shape=[2**32], data=[]), 400, "shape"),
        (_stated(shape=[2**31], data=["AAAA"]), 413, "more than 64 images"),
        (_stated(shape=[1] * 9, data=[]), 400, "shape"),
        (_stated(shape=[2], data=[_text(_ONE)]), 400, "2 elements"),
        (_stated(data=[1]), 400, "strings"),
        (_stated(data=True), 400, "strings"),
        (_stated(datatype="UINT8", data=["AAAA"]), 400, "numbers"),
        (_stated(datatype="UINT8", data=[1, 2]), 400, "1 numbers"),
        (_stated(datatype="UINT8", shape=[2**31], data=[1]), 400, "fewer"),
        (_stated(data=[None]), 400, "strings"),
        (_stated(data=["A"] * 32_001), 400, "32000 JSON values"),
        (_stated(data=["https://example.org/cat.jpg"]), 400, "not fetched"),
        (_stated(parameters={"binary_data_size": 4}), 400, _AT),
        (_stated(**_SHARED), 501, "shared memory"),
        (_stated(data=["AAAA"]) | {"headers": {_AT: "4x"}}, 400, _AT),
        (_stated(data=["AAAA"]) | {"headers": {_AT: "-1"}}, 400, _AT),
        (_stated(data=["AAAA"]) | {"headers": {_AT: "9999"}}, 400, _AT),
        (_stated(data=["AAAA"]) | {"headers": {_AT: "9" * 400}}, 400, _AT),
        ({"content": b" " * 70_000, "headers": {_AT: "70000"}}, 400, "65536"),
        (_message(b"1234", [1], outputs=[{"name": "features", **_SHARED}]), 501, "shared memory"),
        (_message(join_elements([_ONE]) + b"more", [1]), 400, "follow"),
        (_message(join_elements([_ONE]), [2]), 400, "ends after"),
        (_message(bytes(3072), [1, 3, 8, 8], "UINT8"), 400, "32"),
        (_message(bytes(3071), [1, 3, 32, 32], "UINT8"), 400, "3072 bytes"),
        (_message(bytes(3072), [1, 3, 32, 32], "BOOL"), 400, "BOOL"),
        (_files(_ONE, b"\xffbad"), 400, "image 1: "),
        (_files(_ONE, b"\xff" * 200), 413, "image 1: "),
        (_files(*[_ONE] * 65), 413, "64 images"),
    ],
)
async def test_faults_are_named(
    serve: Serve,
    received: tuple[list[InferenceRequest], dict[str, Any]],
    body: dict[str, Any],
    status: int,
    message: str,
) -> None:
    async with serve(received[1], max_image_bytes=100) as client:
        found = _error(await client.post(_URL, **body))

    assert found[0] == status
    assert message in found[1]


@pytest.mark.parametrize("size", [-1, 1])
async def test_a_stated_size_is_that_of_the_tensor(serve: Serve, size: int) -> None:
    tensor = join_elements([_ONE])
    stated = {"name": "x", "shape": [1], "datatype": "BYTES", "parameters": {"binary_data_size": len(tensor) + size}}
    head = json.dumps({"inputs": [stated]}).encode()
    async with serve() as client:
        response = await client.post(_URL, content=head + tensor, headers={_AT: str(len(head))})
        both = json.dumps({"inputs": [stated | {"data": ["AAAA"]}]}).encode()
        twice = await client.post(_URL, content=both + tensor, headers={_AT: str(len(both))})

    assert _error(response)[0] == 400
    assert "binary data" in _error(twice)[1]


async def test_large_json_is_refused_at_its_length(serve: Serve) -> None:
    async with serve() as client:
        response = await client.post(_URL, content=b"[", headers={"Content-Length": str(60 * 2**20)})

    status, message = _error(response)
    assert status == 413
    assert "binary data" in message


async def test_values_of_json_count_as_memory_before_they_are_parsed(serve: Serve) -> None:
    body = _listed([0] * 3072, [3, 32, 32], "UINT8")
    async with serve(max_request_bytes=20_000, max_image_bytes=100, max_held_bytes=30_000) as client:
        assert _error(await client.post(_URL, **body))[0] == 429
    async with serve(max_request_bytes=20_000, max_image_bytes=100, max_held_bytes=40_000) as client:
        # What a request has reserved is free after it.
        assert [(await client.post(_URL, **body)).status_code for _ in range(3)] == [200] * 3


async def test_any_mutated_body_is_answered_or_refused_with_a_documented_status(serve: Serve) -> None:
    chance = random.Random(0)  # noqa: S311 - the same bodies every time
    bodies = [
        _files(_ONE, _TWO),
        _message(bytes(3072), [1, 3, 32, 32], "UINT8", parameters={"binary_data_output": True}),
        {"content": json.dumps(_listed([0] * 12, [3, 2, 2], "FP32")["json"]).encode(), "headers": {}},
    ]
    found: Counter[int] = Counter()
    async with serve(max_image_bytes=1000) as client:
        for number in range(300):
            body = bodies[number % len(bodies)]
            content = bytearray(body["content"])
            for _ in range(chance.randrange(4)):
                at = chance.randrange(len(content))
                match chance.randrange(3):
                    case 0:
                        content[at] = chance.randrange(256)
                    case 1:
                        del content[at : at + chance.randrange(9)]
                    case _:
                        content[at:at] = chance.choice([b"0", b"9" * 9, b"[", b'"', b"-", b"null"])
            headers = dict(body["headers"])
            if chance.random() < 0.2:
                headers |= chance.choice([{_AT: str(chance.randrange(300))}, {"Content-Encoding": "gzip"}])
            response = await client.post(_URL, content=bytes(content), headers=headers)
            found[response.status_code] += 1
            if response.status_code != 200:
                _error(response)

    assert set(found) <= {200, 400, 413}
    assert found[200] > 20
    assert found[400] > 100


async def test_triton_on_sagemaker_has_its_own_type_and_the_model_in_the_query(
    serve: Serve, received: tuple[list[InferenceRequest], dict[str, Any]]
) -> None:
    noted, runtime = received
    media_type = "application/vnd.sagemaker-triton.binary+json;json-header-size="
    sent = _files(_ONE, parameters={"binary_data_output": True})
    headers = {"Content-Type": media_type + sent["headers"][_AT]}
    async with serve(runtime) as client:
        for path in ("/invocations", "/invocations?model=fake@features"):
            response = await client.post(path, content=sent["content"], headers=headers)
            assert response.status_code == 200
            assert response.headers["content-type"] == media_type + response.headers[_AT]
        listed = await client.post("/invocations", headers={"Content-Type": media_type[:-18]}, **_listed(["_w"], [1]))
        wrong = await client.post("/invocations", content=sent["content"], headers={"Content-Type": media_type + "x"})
        refused = await client.get("/invocations", headers=headers)
        other = await client.post("/invocations", content=_ONE)

    assert [list(request.images) for request in noted[:2]] == [[_ONE]] * 2
    assert (noted[0].task, noted[1].task) == ("classify", "features")
    assert (listed.status_code, listed.headers["content-type"]) == (200, "application/json")
    assert (_error(wrong)[0], _error(refused)[0]) == (400, 405)
    assert "predictions" in other.json()


async def test_a_version_loaded_while_the_body_was_read_does_not_answer_for_the_one_in_the_path(
    serve: Serve, prediction: Callable[..., Prediction]
) -> None:
    async def another(_model: str | None, request: InferenceRequest) -> Answer:
        return Answer("fake", "another", 3, (3,), [prediction(request.top_k, dense=True)], 3)

    async with serve({"predict": another, "version": 2}) as client:
        refused = await client.post("/v2/models/fake/versions/2/infer", **_files(_ONE))
        unpinned = await client.post(_URL, **_files(_ONE))

    assert _error(refused)[0] == 404
    assert (unpinned.json()["model_version"], unpinned.json()["parameters"]["fingerprint"]) == ("3", "another")


async def test_the_likeliest_classes_have_a_limit(serve: Serve) -> None:
    """A thousand texts for each image are made at once."""
    output = [{"name": "probabilities", "parameters": {"classification": 1001}}]
    async with serve({"classes": 21_000}) as client:
        assert "at most 1000" in _error(await client.post(_URL, **_files(_ONE, outputs=output)))[1]
