"""Requests of every protocol for images of the `null` model, and what their answers say of each image."""

from __future__ import annotations

import asyncio
from base64 import b64decode, b64encode
from collections.abc import Callable, Sequence
from functools import partial
from io import BytesIO
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from pydantic_core import from_json, to_json

from app.api.contracts.grpc_messages import INFERENCE, methods_of
from app.api.contracts.tensors import join_elements
from app.http.contract import TENSORS_AT
from reliability.wire import CLASSIFY, FEATURES, Address, Answer, Connection, Request, field, of_files, post

PREDICT = "/v1/predict"
# 1e-4 is promised. Texts of probabilities have six decimals.
TOLERANCE = 1e-6
_SIDE = 224
_BEST = 5

INFER = next(method for method in methods_of(INFERENCE) if method.name == "ModelInfer")

# A row for each image: numbers, or probabilities by label.
Rows = Sequence[Any] | NDArray[Any]


class Kind(NamedTuple):
    """One form of request. `wanted` names what its answer has of an image, as `NativeAnswers` do."""

    contract: str
    route: str
    wanted: str
    request_for: Callable[[Sequence[bytes]], Request]
    rows_of: Callable[[Answer], Rows]
    method: str = "POST"
    # Pixels cannot be damaged as files can.
    of_files: bool = True

    @property
    def over_grpc(self) -> bool:
        """Whether its connection is a GrpcConnection."""
        return self.route == INFER.path

    def request(self, images: Sequence[bytes]) -> Request:
        """Return the request for these image files."""
        sent = self.request_for(images)
        return Request(sent.wire.replace(b"POST", self.method.encode(), 1), self.route, len(images))


class NativeAnswers:
    """The native answers to images: vectors for each, by the name of what a protocol answers with."""

    def __init__(self, results: Sequence[dict[str, Any]]) -> None:
        self._labels: dict[str, int] = {}
        features = np.array([result["features"] for result in results])
        probabilities = np.zeros((len(results), len(results[0]["predictions"])))
        for row, result in zip(probabilities, results, strict=True):
            for found in result["predictions"]:
                row[found["index"]] = found["probability"]
        for found in sorted(results[0]["predictions"], key=lambda each: int(each["index"])):
            self._labels.setdefault(found["label"], found["index"])
        best = [{each["label"]: each["probability"] for each in found["predictions"][:_BEST]} for found in results]
        self._wanted = {
            "features": features,
            "unit": features / np.maximum(np.linalg.norm(features, axis=1, keepdims=True), 1e-12),
            "probabilities": probabilities,
            "best": self._vectors(best),
            "both": np.hstack([probabilities, features]),
        }

    @property
    def closest(self) -> float:
        """The difference between the two answers that differ least."""
        return min(
            float(np.abs(rows[number] - rows[:number]).max(axis=1).min())
            for rows in self._wanted.values()
            for number in range(1, len(rows))
        )

    def agree(self, kind: Kind, answer: Answer, numbers: Sequence[int]) -> bool:
        """Return whether an answer has the vectors of the images with these numbers, in this order."""
        found, expected = self._vectors(kind.rows_of(answer)), self._wanted[kind.wanted][list(numbers)]
        return found.shape == expected.shape and bool(np.abs(found - expected).max() <= TOLERANCE)

    def _vectors(self, rows: Rows) -> NDArray[np.float64]:
        if not isinstance(rows[0], dict):
            return np.asarray(rows, np.float64)
        vectors = np.zeros((len(rows), 1 + max(self._labels.values())))
        for vector, row in zip(vectors, rows, strict=True):
            vector[[self._labels[label] for label in row]] = list(row.values())
        return vectors


async def native_answers(address: Address, images: Sequence[bytes]) -> NativeAnswers:
    """Ask for the native answer to each image, few at once."""

    async def answer_to(image: bytes) -> Answer:
        async with few, Connection(address) as connection:
            return await connection.answer_to(post(f"{PREDICT}?top_k=1000", image))

    few = asyncio.Semaphore(16)
    answers = await asyncio.gather(*map(answer_to, images))
    return NativeAnswers([from_json(answer.body)["results"][0] for answer in answers])


def _json(path: str, form: Callable[[list[str]], object], images: Sequence[bytes]) -> Request:
    body = to_json(form([b64encode(image).decode() for image in images]))
    return post(path, body, content_type="application/json")


def _tensor(count: int, datatype: str = "BYTES", shape: Sequence[int] = ()) -> dict[str, Any]:
    return {"name": "image", "datatype": datatype, "shape": [count, *(shape or (1,))]}


def _oip_binary(images: Sequence[bytes]) -> Request:
    outputs = [{"name": name, "parameters": {"binary_data": True}} for name in ("probabilities", "features")]
    return _oip({"id": "7", "inputs": [_tensor(len(images))], "outputs": outputs}, join_elements(images))


def _oip_pixels(images: Sequence[bytes]) -> Request:
    tensor = _tensor(len(images), "UINT8", (_SIDE, _SIDE, 3))
    pixels = b"".join(bytes(Image.open(BytesIO(image)).getpixel((0, 0))) * _SIDE**2 for image in images)  # type: ignore[arg-type]
    return _oip({"inputs": [tensor], "parameters": {"binary_data_output": True}}, pixels, "null@pixels@features")


def _oip(head: dict[str, Any], tensor: bytes, view: str = "null") -> Request:
    text = to_json(head)
    return post(f"/v2/models/{view}/infer", text + tensor, more=f"{TENSORS_AT}: {len(text)}\r\n")


def _oip_json(texts: list[str]) -> object:
    return {"inputs": [_tensor(len(texts)) | {"data": texts}]}


def _oip_classes(texts: list[str]) -> object:
    wanted = [{"name": "probabilities", "parameters": {"classification": _BEST}}]
    return {"inputs": [_tensor(len(texts)) | {"data": texts}], "outputs": wanted}


def _grpc(images: Sequence[bytes]) -> Request:
    raw = [join_elements(images)]
    message = INFER.request(model_name="null", inputs=[_tensor(len(images))], raw_input_contents=raw)
    return Request(message.SerializeToString(), INFER.path)


def _native_features(answer: Answer) -> Rows:
    return [result["features"] for result in from_json(answer.body)["results"]]


def _native_classes(answer: Answer) -> Rows:
    return [_by_label(result["predictions"], "probability") for result in from_json(answer.body)["results"]]


def _by_label(scored: Sequence[dict[str, Any]], key: str) -> dict[str, float]:
    return {each["label"]: each[key] for each in scored}


def _oip_rows(answer: Answer) -> Rows:
    size = int(field(answer.head, TENSORS_AT.lower().encode()) or 0)
    outputs, tensors = from_json(answer.body[: size or None])["outputs"], answer.body[size:]
    ends = np.cumsum([each.get("parameters", {}).get("binary_data_size", 0) for each in outputs])
    raw = [tensors[start:end] for start, end in zip([0, *ends], ends, strict=False)]
    return _joined([(each["shape"], each.get("data") or one) for each, one in zip(outputs, raw, strict=True)])


def _grpc_rows(answer: Answer) -> Rows:
    found = INFER.response.FromString(answer.body)
    return _joined([(each.shape, one) for each, one in zip(found.outputs, found.raw_output_contents, strict=True)])


def _joined(outputs: Sequence[tuple[Sequence[int], Any]]) -> Rows:
    return np.hstack(
        [
            np.reshape(np.frombuffer(each, "<f4") if isinstance(each, bytes) else each, list(shape))
            for shape, each in outputs
        ]
    )


def _oip_labels(answer: Answer) -> Rows:
    [output] = from_json(answer.body)["outputs"]
    texts = [text.split(":", 2) for text in output["data"]]
    return [
        {label: float(probability) for probability, _, label in texts[start : start + _BEST]}
        for start in range(0, len(texts), _BEST)
    ]


def _listed(answer: Answer) -> Rows:
    """Read {"predictions": [...]}, a list of predictions, or one: {label: probability}, or a vector."""
    found = from_json(answer.body)
    if isinstance(found, dict):
        found = found.get("predictions", found)
    return found if isinstance(found, list) and isinstance(found[0], list | dict) else [found]


def _huggingface(answer: Answer) -> Rows:
    found = from_json(answer.body)
    return [_by_label(each, "score") for each in (found if isinstance(found[0], list) else [found])]


def _embeddings(answer: Answer) -> Rows:
    vectors = [each["embedding"] for each in from_json(answer.body)["data"]]
    return [np.frombuffer(b64decode(each), "<f4") if isinstance(each, str) else each for each in vectors]


def _instances(texts: list[str]) -> object:
    return {"instances": [{"b64": text} for text in texts]}


def _embedded(encoding: str, texts: list[str]) -> object:
    return {"input": [f"data:image/png;base64,{text}" for text in texts], "encoding_format": encoding}


_IMAGES: Callable[[list[str]], object] = lambda texts: {"images": texts}  # noqa: E731 - as the forms above
_INPUTS: Callable[[list[str]], object] = lambda texts: {"inputs": texts}  # noqa: E731
_BASE64, _FLOAT = partial(_embedded, "base64"), partial(_embedded, "float")
_INFER, _VERSION, _V1 = "/v2/models/null/infer", "/v2/models/null/versions/1/infer", "/v1/models/null:predict"
_EMBEDDINGS, _VECTORS, _OTHER = "/v1/embeddings", "/predictions/null@features/1.0", "/invocations?model=null"
_OIP, _TORCHSERVE, _HF = "/v2/models/{name}/infer", "/predictions/{name}", "/hf/{name}"

KINDS = (
    Kind("native", CLASSIFY, "best", partial(of_files, CLASSIFY), _native_classes),
    Kind("native", FEATURES, "features", partial(of_files, FEATURES), _native_features),
    Kind("native", PREDICT, "unit", partial(of_files, f"{PREDICT}?outputs=features&normalize=true"), _native_features),
    Kind("native", PREDICT, "best", partial(_json, PREDICT, _IMAGES), _native_classes),
    Kind("oip", _OIP, "both", _oip_binary, _oip_rows),
    Kind("oip", _OIP, "features", _oip_pixels, _oip_rows, of_files=False),
    Kind("oip", _OIP, "probabilities", partial(_json, _INFER, _oip_json), _oip_rows),
    Kind("oip", _OIP, "best", partial(_json, _VERSION, _oip_classes), _oip_labels),
    Kind("oip", INFER.path, "probabilities", _grpc, _grpc_rows),
    Kind("openai", _EMBEDDINGS, "unit", partial(_json, _EMBEDDINGS, _BASE64), _embeddings),
    Kind("openai", _EMBEDDINGS, "unit", partial(_json, _EMBEDDINGS, _FLOAT), _embeddings),
    Kind("torchserve", _TORCHSERVE, "best", partial(of_files, "/predictions/null"), _listed, "PUT"),
    Kind("torchserve", _TORCHSERVE, "features", partial(of_files, _VECTORS), _listed),
    Kind("kserve_v1", "/v1/models/{name}:predict", "best", partial(_json, _V1, _instances), _listed),
    Kind("sagemaker", "/invocations", "best", partial(of_files, "/invocations"), _listed),
    Kind("sagemaker", "/invocations", "best", partial(_json, _OTHER, _instances), _listed),
    Kind("huggingface", "/", "best", partial(of_files, "/"), _huggingface),
    Kind("huggingface", _HF, "best", partial(_json, "/hf/null", _INPUTS), _huggingface),
)
