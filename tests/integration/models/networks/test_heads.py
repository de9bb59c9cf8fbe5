"""Classifiers are cut before their head, and only where the logits stay the same."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from models import backends
from models.images.preprocessing import Transform
from models.interface.errors import UnsupportedArchitectureError
from models.loading.load import load
from models.networks import architectures
from models.networks.cutting import cut_at_head
from models.networks.specs import Classifier, ModelSpec

CPU = backends.place("cpu", "fp32", "eager")


class Trunk(nn.Module):
    """(N, 3, H, W) to a map (N, 6, H / 2, W / 2)."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 6, 3, stride=2, padding=1)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.conv(images).relu()


def test_features_go_into_a_linear_head_and_logits_come_out() -> None:
    whole = nn.Sequential(Trunk(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(), nn.Linear(6, 4))
    images = torch.rand(3, 3, 16, 16)
    expected = whole.eval()(images)
    network = cut_at_head("m", whole, 16)
    features, logits = network(images)
    assert (network.dimensions, network.feature_shape, network.classes) == (6, (6,), 4)
    assert logits.equal(expected)
    assert network.head(features).equal(logits)
    assert network.original_name("head") == "4"


def test_a_convolution_of_one_position_is_a_head_as_well() -> None:
    whole = nn.Sequential(Trunk(), nn.AdaptiveAvgPool2d(1), nn.Conv2d(6, 4, 1), nn.Flatten())
    images = torch.rand(3, 3, 16, 16)
    expected = whole.eval()(images)
    network = cut_at_head("m", whole, 16)
    features, logits = network(images)
    assert features.shape == (3, 6)
    torch.testing.assert_close(features, whole[0](images).mean((2, 3)))
    assert logits.equal(expected)
    assert network.head(features).equal(logits)
    assert network.original_name("head.1") == "2"


def test_a_head_over_a_map_takes_the_map_and_features_are_its_average() -> None:
    architecture = architectures.find("squeezenet1_1")
    whole = architecture.build(None).eval()
    images = torch.rand(2, 3, 224, 224)
    with torch.no_grad():
        expected, trunk = whole(images), whole.features(images)
        network = cut_at_head("squeezenet1_1", whole, 224)
        features, logits = network(images)
        head_input = network.head_input(images)
        assert logits.equal(expected)
        assert network.logits_of(head_input).equal(logits)
    assert (network.dimensions, network.classes) == (512, 1000)
    torch.testing.assert_close(features, trunk.mean((2, 3)))


# Two heads over one vector, two over two tokens, and two over vectors of different lengths.
@pytest.mark.parametrize(
    ("name", "dimensions"),
    [
        ("timm/levit_128s", 384),
        ("timm/deit_tiny_distilled_patch16_224", 192),
        ("timm/crossvit_9_240", 384),
    ],
)
def test_heads_whose_answers_are_averaged_are_cut_as_timm_does(name: str, dimensions: int) -> None:
    architecture = architectures.find(name)
    whole = architecture.build(None).eval()
    images = torch.rand(2, 3, architecture.transform.crop, architecture.transform.crop)
    with torch.no_grad():
        expected = whole(images)
        network = cut_at_head(name, whole, architecture.transform.crop)
        features, logits = network(images)
        assert network.logits_of(network.head_input(images)).equal(logits)
        pre_logits = whole.forward_head(whole.forward_features(images), pre_logits=True)
    assert features.shape == (2, network.dimensions) == (2, dimensions)
    assert logits.equal(expected)
    assert features.equal(pre_logits)


@pytest.mark.parametrize("after", [nn.Tanh(), nn.ReLU(inplace=True), nn.Softmax(dim=1)])
def test_a_network_that_goes_on_after_its_last_layer_is_refused(after: nn.Module) -> None:
    whole = nn.Sequential(Trunk(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 4), after)
    # Biases well below zero, so that an in-place activation changes values.
    nn.init.constant_(whole[3].bias, -1.0)
    with pytest.raises(UnsupportedArchitectureError, match=r"^m cannot be served: its logits are not"):
        cut_at_head("m", whole, 16)


def test_the_layer_that_runs_last_is_the_head_whatever_the_order_of_names() -> None:
    class Reversed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head, self.trunk, self.middle = nn.Linear(5, 4), Trunk(), nn.Linear(6, 5)

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return self.head(self.middle(self.trunk(images).mean((2, 3))))

    network = cut_at_head("m", Reversed(), 16)
    assert network.dimensions == 5
    assert network.original_name("head") == "head"


def test_a_network_without_logits_is_refused_with_a_description_of_its_output() -> None:
    class Tuple(nn.Module):
        def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, ...]:
            return images, images

    with pytest.raises(UnsupportedArchitectureError, match="gives tuple, and not logits"):
        cut_at_head("m", Tuple(), 16)
    with pytest.raises(UnsupportedArchitectureError, match=r"gives \(1, 6, 8, 8\) for one image, and not logits"):
        cut_at_head("m", Trunk(), 16)


def test_a_network_without_labels_serves_features_and_no_classes() -> None:
    transform = Transform(16, 16, "bilinear", (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
    model = load(ModelSpec("trunk", "trunk", lambda: Classifier(Trunk(), transform, ())), CPU)
    images = torch.rand(3, 3, 16, 16)
    features, logits = model.network(images)
    assert (model.network.classes, model.network.dimensions, model.labels) == (0, 6, ())
    assert logits.shape == (3, 0)
    torch.testing.assert_close(features, model.network.body(images).mean((2, 3)))
