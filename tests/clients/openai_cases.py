"""Cases of OpenAI's Python client: embeddings of images, and the list of models."""

from __future__ import annotations

import base64
from collections.abc import Iterator, Sequence

import numpy as np
import openai
import pytest
from native import CLOCK, LIGHT, MODEL, URL, assert_close, features
from openai.types import CreateEmbeddingResponse

CLOCK_URI, LIGHT_URI = (f"data:image/jpeg;base64,{base64.b64encode(file).decode()}" for file in (CLOCK, LIGHT))


@pytest.fixture
def client() -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{URL}/v1", api_key="unused", max_retries=0) as opened:
        yield opened


def _vectors(answer: CreateEmbeddingResponse) -> list[Sequence[float]]:
    return [each.embedding for each in answer.data]


def test_models_are_listed_and_described(client: openai.OpenAI) -> None:
    described = client.models.retrieve(MODEL)

    assert [model.id for model in client.models.list()] == [MODEL]
    assert (described.id, described.object, described.owned_by) == (MODEL, "model", "gradless")


def test_vectors_are_the_native_ones(client: openai.OpenAI) -> None:
    answer = client.embeddings.create(model=MODEL, input=[CLOCK_URI, LIGHT_URI])

    assert [each.index for each in answer.data] == [0, 1]
    assert answer.model == MODEL
    assert_close(_vectors(answer), [features(CLOCK, normalize=True), features(LIGHT, normalize=True)])
    assert_close(np.linalg.norm(_vectors(answer), axis=1), [1, 1])


def test_numbers_equal_base64(client: openai.OpenAI) -> None:
    # The client asks for base64 by itself.
    encoded = client.embeddings.create(model=MODEL, input=CLOCK_URI)
    numbers = client.embeddings.create(model=MODEL, input=CLOCK_URI, encoding_format="float")

    assert_close(_vectors(encoded), _vectors(numbers))


def test_parameters_of_other_services_are_accepted(client: openai.OpenAI) -> None:
    more = {"modality": "image", "normalized": False, "input_type": "passage"}
    kept = client.embeddings.create(model=MODEL, input=CLOCK_URI, extra_body=more)
    part = {"type": "image_url", "image_url": {"url": CLOCK_URI}}
    body = {"model": MODEL, "messages": [{"role": "user", "content": [part]}], "encoding_format": "float"}
    seen = client.post("/embeddings", body=body, cast_to=CreateEmbeddingResponse)

    assert_close(_vectors(kept), [features(CLOCK)], 1e-3)
    assert_close(_vectors(seen), [features(CLOCK, normalize=True)])


def test_errors_are_those_of_openai(client: openai.OpenAI) -> None:
    create = client.embeddings.create
    with pytest.raises(openai.NotFoundError) as unknown:
        create(model="nobody", input=CLOCK_URI)
    with pytest.raises(openai.BadRequestError) as address:
        create(model=MODEL, input="https://example.org/cat.jpg")
    with pytest.raises(openai.BadRequestError, match=r"input\[1\]: "):
        create(model=MODEL, input=[CLOCK_URI, base64.b64encode(b"no image").decode()])
    with pytest.raises(openai.BadRequestError) as dimensions:
        create(model=MODEL, input=CLOCK_URI, dimensions=7)

    assert unknown.value.code == "model_not_found"
    assert (address.value.param, dimensions.value.param) == ("input", "dimensions")
