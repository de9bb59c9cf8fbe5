"""The unchanged package `openai` against a running service: `python openai_cases.py ADDRESS IMAGE IMAGE`.

It runs in an environment of its own, with the packages of openai.txt, and ends with an error if a case fails. The
service has the default model and needs no key.
"""

from __future__ import annotations

import base64
import json
import math
import re
import subprocess
import sys
import tempfile
import urllib.request
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import openai
from openai.types import CreateEmbeddingResponse

_MODEL = "efficientnet_lite0"
_DOCUMENTED = Path(__file__).parents[2] / "docs/clients.md"
_TOLERANCE = 1e-4


class Service:
    """A running service, its client, and two images to send."""

    def __init__(self, address: str, first: Path, second: Path) -> None:
        self.address = address
        self.client = openai.OpenAI(base_url=f"{address}/v1", api_key="unused", max_retries=0)
        self.files = [first.read_bytes(), second.read_bytes()]
        self.uris = [f"data:image/png;base64,{base64.b64encode(file).decode()}" for file in self.files]

    def native(self, file: bytes, query: str = "normalize=true") -> list[float]:
        """Return the vector of the native route."""
        with urllib.request.urlopen(f"{self.address}/v1/features?{query}", file, timeout=60) as answer:  # noqa: S310
            vector: list[float] = json.load(answer)["results"][0]["features"]
        return vector


def _equal(one: Sequence[float], other: Sequence[float]) -> bool:
    return len(one) == len(other) and all(
        math.isclose(a, b, abs_tol=_TOLERANCE) for a, b in zip(one, other, strict=True)
    )


def _raised(error: type[openai.APIStatusError], call: Callable[..., Any], **arguments: Any) -> openai.APIStatusError:
    try:
        call(**arguments)
    except error as raised:
        return raised
    raise AssertionError(f"no {error.__name__}")


def models_are_listed_and_described(service: Service) -> None:
    assert [model.id for model in service.client.models.list()] == [_MODEL]
    described = service.client.models.retrieve(_MODEL)
    assert (described.id, described.object, described.owned_by) == (_MODEL, "model", "gradless")


def vectors_are_those_of_the_native_route(service: Service) -> None:
    answer = service.client.embeddings.create(model=_MODEL, input=service.uris)
    assert [each.index for each in answer.data] == [0, 1]
    assert answer.model == _MODEL
    for each, file in zip(answer.data, service.files, strict=True):
        assert _equal(each.embedding, service.native(file))
        assert math.isclose(math.hypot(*each.embedding), 1, abs_tol=_TOLERANCE)


def numbers_equal_base64(service: Service) -> None:
    create = service.client.embeddings.create
    [encoded] = create(model=_MODEL, input=service.uris[0]).data
    [numbers] = create(model=_MODEL, input=service.uris[0], encoding_format="float").data
    assert _equal(encoded.embedding, numbers.embedding)


def parameters_of_other_services_are_accepted(service: Service) -> None:
    more = {"modality": "image", "normalized": False, "input_type": "passage"}
    [kept] = service.client.embeddings.create(model=_MODEL, input=service.uris[0], extra_body=more).data
    assert _equal(kept.embedding, service.native(service.files[0], "normalize=false"))
    part = {"type": "image_url", "image_url": {"url": service.uris[0]}}
    body = {"model": _MODEL, "messages": [{"role": "user", "content": [part]}], "encoding_format": "float"}
    [seen] = service.client.post("/embeddings", body=body, cast_to=CreateEmbeddingResponse).data
    assert _equal(seen.embedding, service.native(service.files[0]))


def errors_are_raised_as_those_of_openai(service: Service) -> None:
    create = service.client.embeddings.create
    unknown = _raised(openai.NotFoundError, create, model="nobody", input=service.uris[0])
    assert unknown.code == "model_not_found"
    address = _raised(openai.BadRequestError, create, model=_MODEL, input="https://example.org/cat.jpg")
    assert address.param == "input"
    no_image = base64.b64encode(b"no image").decode()
    faulty = _raised(openai.BadRequestError, create, model=_MODEL, input=[service.uris[0], no_image])
    assert "input[1]: " in faulty.message
    assert _raised(openai.BadRequestError, create, model=_MODEL, input=service.uris[0], dimensions=7).param


def the_documented_lines_work(service: Service) -> None:
    section = _DOCUMENTED.read_text().split("## OpenAI\n")[1]
    found = re.search(r"```python\n(.*?)```", section, re.DOTALL)
    assert found
    lines = found[1].replace("http://127.0.0.1:8000", service.address)
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "clock.png").write_bytes(service.files[0])
        printed = subprocess.run([sys.executable, "-c", lines], cwd=folder, capture_output=True, check=True)
    assert int(printed.stdout) == len(service.native(service.files[0]))


CASES = (
    models_are_listed_and_described,
    vectors_are_those_of_the_native_route,
    numbers_equal_base64,
    parameters_of_other_services_are_accepted,
    errors_are_raised_as_those_of_openai,
    the_documented_lines_work,
)


def main() -> None:
    address, first, second = sys.argv[1:]
    service = Service(address, Path(first), Path(second))
    for case in CASES:
        case(service)
        sys.stdout.write(f"{case.__name__}\n")


if __name__ == "__main__":
    main()
