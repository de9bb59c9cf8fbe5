"""The engine answers each item of a batch as if it were alone, and refuses a model that fails its warm-up."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import nn

from models import backends
from models.inference.engine import Engine
from models.inference.image_job import BatchItem
from models.interface.errors import StartError, WarmUpError
from models.interface.request import InferenceRequest
from models.loading.load import LoadedModel, load
from models.networks.specs import ModelSpec


def pictures(count: int, side: int) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return list(torch.randint(0, 256, (count, 3, side, side), dtype=torch.uint8, generator=generator))


def test_every_item_has_its_top_k_classes(tiny_engine: Engine) -> None:
    top_ks = [0, 3, 10, 1]
    outputs = tiny_engine.run(
        [
            BatchItem(image, InferenceRequest("classify", top_k=top_k))
            for image, top_k in zip(pictures(4, 32), top_ks, strict=True)
        ]
    )
    for output, top_k in zip(outputs, top_ks, strict=True):
        assert output.features.shape == (16,)
        assert output.features.dtype == np.float32
        assert output.indices.shape == output.probabilities.shape == (top_k,)
        assert (np.diff(output.probabilities) <= 0).all()


def test_all_probabilities_are_the_softmax_of_the_logits(tiny_engine: Engine) -> None:
    [image] = pictures(1, 32)
    [output] = tiny_engine.run([BatchItem(image, InferenceRequest("classify", top_k=10))])
    with torch.no_grad():
        _, logits = tiny_engine.model.network(tiny_engine.model.normalize(image[None]))
    np.testing.assert_allclose(output.probabilities, logits.softmax(1)[0].numpy()[output.indices], rtol=1e-6)
    assert output.probabilities.sum() == pytest.approx(1)


def test_only_requests_that_ask_for_all_probabilities_have_them(tiny_engine: Engine) -> None:
    [image] = pictures(1, 32)
    requests = [
        InferenceRequest("classify", top_k=10),
        InferenceRequest("classify", all_probabilities=True),
        InferenceRequest("features"),
        InferenceRequest("classify", top_k=2, all_probabilities=True),
    ]
    top, everything, features, both = tiny_engine.run([BatchItem(image, request) for request in requests])

    assert top.all_probabilities is None
    assert features.all_probabilities is None
    for output in (everything, both):
        assert output.all_probabilities is not None
        assert output.all_probabilities.dtype == np.float32
        np.testing.assert_array_equal(output.all_probabilities[top.indices], top.probabilities)
    np.testing.assert_array_equal(both.indices, top.indices[:2])


def test_a_batch_of_feature_requests_has_no_classes(tiny_engine: Engine) -> None:
    for output in tiny_engine.run([BatchItem(image, InferenceRequest("features")) for image in pictures(3, 32)]):
        assert len(output.indices) == len(output.probabilities) == 0
        assert output.features.shape == (16,)


def test_features_are_the_same_alone_and_in_a_batch(default_engine: Engine) -> None:
    images = pictures(32, 224)
    together = default_engine.run([BatchItem(image, InferenceRequest("features")) for image in images])
    for place in (0, 17, 31):
        [alone] = default_engine.run([BatchItem(images[place], InferenceRequest("features"))])
        scale = np.abs(alone.features).max()
        assert np.abs(together[place].features - alone.features).max() < 1e-4 * scale
        lengths = np.linalg.norm(alone.features) * np.linalg.norm(together[place].features)
        assert together[place].features @ alone.features / lengths > 0.9999


def test_features_alone_are_the_same_to_the_last_bit_every_time(default_engine: Engine) -> None:
    [image] = pictures(1, 224)
    [first], [second] = (default_engine.run([BatchItem(image, InferenceRequest("features"))]) for _ in range(2))
    assert np.array_equal(first.features, second.features)


def test_bf16_answers_on_the_cpu_nearly_as_fp32_does(
    tiny: ModelSpec, tiny_engine: Engine, engine_for: Callable[[LoadedModel], Engine]
) -> None:
    half = engine_for(load(tiny, backends.place("cpu", "bf16", "eager")))
    half.warm_up()
    items = [BatchItem(image, InferenceRequest("classify", top_k=10)) for image in pictures(4, 32)]
    for exact, rounded in zip(tiny_engine.run(items), half.run(items), strict=True):
        assert rounded.features.dtype == np.float32
        assert rounded.probabilities.sum() == pytest.approx(1, abs=1e-5)
        np.testing.assert_allclose(rounded.features, exact.features, atol=0.02)


def test_a_model_in_training_mode_fails_its_warm_up(tiny_engine: Engine) -> None:
    list(tiny_engine.model.network.modules())[-1].train()
    with pytest.raises(WarmUpError, match="not in eval mode"):
        tiny_engine.warm_up()


def test_a_model_whose_features_are_not_finite_fails_its_warm_up(
    tiny_engine: Engine, engine_for: Callable[[LoadedModel], Engine]
) -> None:
    first = next(tiny_engine.model.network.parameters())
    with torch.no_grad():
        first.fill_(float("nan"))
    with pytest.raises(WarmUpError, match="not finite"):
        engine_for(tiny_engine.model).warm_up()


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_model_whose_logits_are_not_finite_fails_its_warm_up(
    tiny_engine: Engine, engine_for: Callable[[LoadedModel], Engine], value: float
) -> None:
    with torch.no_grad():
        tiny_engine.model.network.head.bias[3] = value
    with pytest.raises(WarmUpError, match="not finite"):
        engine_for(tiny_engine.model).warm_up()


def test_a_model_of_the_catalog_with_weights_that_are_not_finite_is_refused(
    tiny: ModelSpec, engine_for: Callable[[LoadedModel], Engine]
) -> None:
    classifier = tiny.build()
    with torch.no_grad():
        next(classifier.module.parameters()).fill_(float("nan"))
    spec = ModelSpec("tiny", "tiny-convnet", lambda: classifier)
    with pytest.raises(StartError):
        engine_for(load(spec, backends.place("cpu", "fp32", "eager"))).warm_up()


def test_a_model_that_cannot_take_a_full_batch_fails_its_warm_up(
    tiny_engine: Engine, engine_for: Callable[[LoadedModel], Engine]
) -> None:
    class OneByOne(nn.Module):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            if len(images) > 2:
                raise RuntimeError("out of room")
            return images

    network = tiny_engine.model.network
    network.body = nn.Sequential(OneByOne(), network.body).eval()
    with pytest.raises(WarmUpError, match="RuntimeError: out of room"):
        engine_for(dataclasses.replace(tiny_engine.model, network=network)).warm_up()
