"""What can be served by name is built with its own weights, labels and preprocessing."""

from __future__ import annotations

import pytest
import torch
import torchvision

from models import backends
from models.images.preprocessing import decode_image
from models.images.samples import Sample, draw, encode
from models.inference.engine import Engine
from models.inference.image_job import BatchItem
from models.interface.errors import StartError, UnknownCatalogNameError
from models.interface.request import ImageLimits, InferenceRequest
from models.loading import catalog
from models.loading.load import LoadedModel, load
from models.networks import architectures
from models.networks.specs import Classifier

CPU = backends.place("cpu", "fp32", "eager")


def test_the_default_model_has_the_thousand_classes_of_imagenet(default_model: LoadedModel) -> None:
    assert default_model.architecture == "tf_efficientnet_lite0"
    assert len(default_model.labels) == default_model.network.classes == 1000
    assert (default_model.labels[0], default_model.labels[409]) == ("tench", "analog clock")
    assert default_model.network.dimensions == 1280
    assert default_model.transform.crop == 224


@pytest.mark.parametrize("image_format", ["PNG", "JPEG"])
@pytest.mark.parametrize(
    ("sample", "label"),
    [("clock", "analog clock"), ("traffic-light", "traffic light"), ("crossword", "crossword puzzle")],
)
def test_the_default_model_names_the_drawn_samples(
    default_engine: Engine, sample: Sample, label: str, image_format: str
) -> None:
    image = decode_image(encode(draw(sample), image_format), ImageLimits())
    [output] = default_engine.run(
        [BatchItem(default_engine.model.transform.shape(image), InferenceRequest("classify", top_k=1))]
    )
    assert default_engine.model.labels[output.indices[0]] == label


def test_random_weights_are_the_same_every_time_and_differ_between_architectures() -> None:
    first, second = (load(catalog.find("resnet18:random"), CPU) for _ in range(2))
    other = load(catalog.find("mobilenet_v3_small:random"), CPU)
    assert first.fingerprint == second.fingerprint != other.fingerprint


def test_making_random_weights_leaves_the_random_state_alone() -> None:
    before = torch.random.get_rng_state()
    catalog.find("mobilenet_v3_small:random").build()
    assert torch.random.get_rng_state().equal(before)


@pytest.mark.parametrize("architecture", ["resnet18", "vit_b_16", "efficientnet_v2_s"])
def test_transform_and_labels_come_from_the_weights_entry(architecture: str, monkeypatch: pytest.MonkeyPatch) -> None:
    entry = torchvision.models.get_model_weights(architecture).DEFAULT
    # Without building networks, which takes seconds for large ones.
    monkeypatch.setattr(torchvision.models, "get_model", lambda *_args, **_options: torch.nn.Linear(1, 1))
    found: Classifier = catalog.find(f"{architecture}:random").build()
    preset = entry.transforms()
    assert found.labels == tuple(entry.meta["categories"])
    assert (found.transform.resize, found.transform.crop) == (preset.resize_size[0], preset.crop_size[0])
    assert (found.transform.mean, found.transform.std) == (tuple(preset.mean), tuple(preset.std))
    assert found.transform.interpolation == preset.interpolation.value


@pytest.mark.parametrize("architecture", ["vit_b_16", "vit_l_16", "vit_h_14"])
def test_a_vision_transformer_is_built_for_the_images_that_its_transform_makes(architecture: str) -> None:
    with torch.device("meta"):
        found = architectures.find(architecture)
        assert found.build(None).image_size == found.transform.crop


def test_a_source_is_served_under_the_name_before_it() -> None:
    found = catalog.find("mine/1=resnet18:random")

    assert (found.name, found.architecture) == ("mine/1", "resnet18")


def test_an_operator_cannot_name_a_model_like_an_operation() -> None:
    with pytest.raises(StartError, match="mine:predict"):
        catalog.find("mine:predict=resnet18:random")


def test_every_name_is_found_with_random_weights() -> None:
    for name in architectures.names():
        assert catalog.find(f"{name}:random").architecture == name


def test_a_misspelt_name_is_refused_with_a_suggestion() -> None:
    with pytest.raises(UnknownCatalogNameError, match=r"'resnet51'; did you mean .*resnet50"):
        catalog.find("resnet51")


def test_a_name_without_a_similar_one_is_refused_without_a_suggestion() -> None:
    with pytest.raises(UnknownCatalogNameError, match=r"^no model is named 'qqqq'$"):
        catalog.find("qqqq")
