"""timm's models by name: built with their own transforms and labels."""

from __future__ import annotations

import pytest
import timm
import torch

from models import backends
from models.interface.errors import UnknownCatalogNameError, UnsupportedArchitectureError
from models.loading import catalog
from models.loading.load import load
from models.networks import architectures

CPU = backends.place("cpu", "fp32", "eager")

# One of timm's own for tests: under half a million parameters.
NAME = "timm/test_resnet.r160_in1k"


def test_the_transform_is_the_evaluation_transform_of_timm() -> None:
    classifier = catalog.find(f"{NAME}:random").build()
    config = timm.data.resolve_model_data_config(classifier.module)
    transform = classifier.transform
    assert transform.crop == config["input_size"][1] == 160
    assert transform.resize == int(160 / config["crop_pct"])
    assert (transform.mean, transform.std) == (config["mean"], config["std"])
    assert (transform.interpolation, transform.fit) == (config["interpolation"], "crop")


def test_a_tag_selects_the_transform_of_its_weights() -> None:
    assert architectures.find("timm/convnext_tiny.fb_in22k").transform.resize == 256
    assert architectures.find("timm/convnext_tiny.fb_in22k_ft_in1k_384").transform.fit == "stretch"


@pytest.mark.parametrize(
    ("name", "classes", "first"),
    [
        ("timm/resnet18", 1000, "tench"),
        ("timm/convnext_tiny.in12k", 11821, "benthos"),
        ("timm/vit_small_patch14_dinov2", 0, None),
        ("timm/tf_efficientnet_l2.ns_jft_in1k", 1000, "tench"),
    ],
)
def test_labels_are_those_of_the_weights(name: str, classes: int, first: str | None) -> None:
    labels = architectures.find(name).labels
    assert len(labels) == classes
    assert next(iter(labels), None) == first


def test_a_network_is_built_with_the_given_number_of_classes() -> None:
    built = architectures.find(NAME).build(7).eval()
    with torch.no_grad():
        assert built(torch.rand(1, 3, 160, 160)).shape == (1, 7)


def test_random_weights_are_the_same_every_time_and_leave_the_random_state_alone() -> None:
    before = torch.random.get_rng_state()
    first, second = (load(catalog.find(f"{NAME}:random"), CPU) for _ in range(2))
    catalog.find(f"{NAME}:random").build()
    assert first.fingerprint == second.fingerprint
    torch.random.set_rng_state(before)
    catalog.find(f"{NAME}:random").build()
    assert torch.random.get_rng_state().equal(before)


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("timm/resnt18", "timm/resnet18"),
        ("timm/resnet18.a1in1k", r"timm/resnet18\.a1_in1k"),
        ("convnext_atto", "timm/convnext_atto"),
    ],
)
def test_a_misspelt_name_is_refused_with_a_suggestion(name: str, meant: str) -> None:
    with pytest.raises(UnknownCatalogNameError, match=f"did you mean .*{meant}"):
        catalog.find(name)


def test_a_model_with_images_that_are_not_square_is_refused() -> None:
    with pytest.raises(UnsupportedArchitectureError, match=r"sapiens2 .*images of 768 x 1024"):
        architectures.find("timm/vit_base_patch16_sapiens2")


def test_a_pattern_lists_all_of_timm() -> None:
    assert not any(name.startswith("timm/") for name in catalog.names())
    assert len(catalog.names("timm/*")) >= len(timm.list_models(pretrained=True)) + len(timm.list_models())
    assert "timm/resnet18.a1_in1k" in catalog.names("timm/resnet18*")
