"""An inner layer served: the same numbers as in the whole network, and what comes after it is not there any more."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from gradless.records import ARMS, ComparisonOptions
from models import backends
from models.backends import BackendOptions
from models.backends.folding import folded
from models.inference.engine import Engine
from models.inference.image_job import BatchItem
from models.interface.errors import UnsupportedArchitectureError
from models.interface.model_sources import FeatureForm
from models.interface.request import InferenceRequest
from models.loading.load import LoadedModel, load
from models.networks import architectures
from models.networks.specs import Classifier, FeatureLayer, ModelSpec
from models.serving.lens import compare_served

CPU = backends.place("cpu", "fp32", "eager")

# A network of timm's for its own tests: four stages, 160 pixels.
NAME = "timm/test_resnet"


def spec_of(name: str, node: str, form: FeatureForm = "pooled") -> ModelSpec:
    def build() -> Classifier:
        architecture = architectures.find(name)
        return Classifier(
            architecture.build(None), architecture.transform, architecture.labels, FeatureLayer(node, form)
        )

    return ModelSpec("cut", name, build)


def seen_at(name: str, module_name: str, images: torch.Tensor) -> torch.Tensor:
    """What that module gives in the whole network."""
    whole = architectures.find(name).build(None).eval()
    seen: list[torch.Tensor] = []
    whole.get_submodule(module_name).register_forward_hook(lambda _module, _inputs, output: seen.append(output))
    with torch.no_grad():
        whole(images)
    return seen[0]


@pytest.fixture(scope="module")
def pooled() -> LoadedModel:
    return load(spec_of(NAME, "layer3"), CPU)


@pytest.fixture(scope="module")
def mapped() -> LoadedModel:
    return load(spec_of(NAME, "layer3", "map"), CPU)


@pytest.fixture(scope="module")
def images() -> torch.Tensor:
    return torch.rand(3, 3, 160, 160)


def test_a_pooled_layer_is_its_mean_over_positions(pooled: LoadedModel, images: torch.Tensor) -> None:
    expected = seen_at(NAME, "layer3", images)
    with torch.no_grad():
        features, logits = pooled.network(images)
    assert (pooled.network.classes, pooled.labels, logits.shape) == (0, (), (3, 0))
    assert pooled.network.feature_shape == (expected.shape[1],) == (pooled.network.dimensions,)
    torch.testing.assert_close(features, expected.mean((2, 3)))


def test_a_map_is_the_flattened_layer_and_its_shape_is_reported(mapped: LoadedModel, images: torch.Tensor) -> None:
    expected = seen_at(NAME, "layer3", images)
    with torch.no_grad():
        features, _ = mapped.network(images)
    assert mapped.network.feature_shape == tuple(expected.shape[1:])
    assert features.equal(expected.flatten(1))


# Tokens, a map whose channels come last, and one of torchvision's.
@pytest.mark.parametrize(
    ("name", "node", "over"),
    [
        ("timm/test_vit", "blocks.2", 1),
        ("swin_t", "features.1", (1, 2)),
        ("mobilenet_v3_small", "features.4", (2, 3)),
    ],
)
def test_layers_of_other_shapes_are_averaged_over_their_positions(
    name: str, node: str, over: int | tuple[int, ...]
) -> None:
    side = architectures.find(name).transform.crop
    images = torch.rand(2, 3, side, side)
    model = load(spec_of(name, node), CPU)
    with torch.no_grad():
        features, _ = model.network(images)
    torch.testing.assert_close(features, seen_at(name, node, images).mean(over))


def test_modules_after_the_layer_are_removed(pooled: LoadedModel) -> None:
    whole = architectures.find(NAME).build(None)
    names = {pooled.network.original_name(name).split(".")[0] for name, _ in pooled.network.named_parameters()}
    assert names == {"conv1", "bn1", "layer1", "layer2", "layer3"}
    after = sum(part.numel() for each in (whole.layer4, whole.fc) for part in each.parameters())
    assert pooled.parameters == sum(part.numel() for part in whole.parameters()) - after


def test_modules_keep_their_original_names(pooled: LoadedModel) -> None:
    whole = {name for name, _ in architectures.find(NAME).build(None).named_modules()}
    own = {pooled.network.original_name(name) for name, _ in pooled.network.named_modules()}
    assert {name for name in own if name.startswith("layer3")} <= whole
    assert "layer3.0.conv1" in own


def test_layer_and_form_are_part_of_the_fingerprint(pooled: LoadedModel, mapped: LoadedModel) -> None:
    others = [load(spec_of(NAME, node), CPU).fingerprint for node in ("layer2", "layer3.0")]
    assert len({pooled.fingerprint, mapped.fingerprint, *others}) == 4
    assert load(spec_of(NAME, "layer3"), CPU).fingerprint == pooled.fingerprint


@pytest.mark.parametrize(
    ("layer", "message"),
    [
        ("layr3", r"no layer 'layr3'; did you mean .*layer3"),
        ("layer3.7", r"did you mean .*layer3"),
        ("encoder", r"there is x, conv1, .*layer4, .*fc"),
    ],
)
def test_an_unknown_layer_is_refused_with_the_known_layers(layer: str, message: str) -> None:
    with pytest.raises(UnsupportedArchitectureError, match=message) as refused:
        load(spec_of(NAME, layer), CPU)
    assert "\n" not in str(refused.value)


def test_a_node_that_gives_no_row_for_each_image_is_refused() -> None:
    with pytest.raises(UnsupportedArchitectureError, match=r"cannot be served: .*not a row for each image"):
        load(spec_of("timm/test_vit", "patch_embed.getattr"), CPU)


def test_a_network_that_cannot_be_traced_is_refused_with_the_reason(tiny: ModelSpec) -> None:
    class Branching(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 1)

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return self.conv(images) if images.sum() > 0 else images

    def build() -> Classifier:
        return replace(tiny.build(), module=Branching(), features=FeatureLayer("conv"))

    with pytest.raises(UnsupportedArchitectureError, match=r"torch.fx cannot follow its forward.*control flow"):
        load(ModelSpec("branching", "branching", build), CPU)


@pytest.mark.parametrize("form", ["pooled", "map"])
@pytest.mark.parametrize("backend", ["eager", "openvino"])
def test_a_backend_gives_the_output_of_the_layer(
    backend: str, form: FeatureForm, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    model: LoadedModel = request.getfixturevalue("pooled" if form == "pooled" else "mapped")
    made = backends.make(
        replace(model, placement=backends.place("cpu", "fp32", backend)),
        BackendOptions(max_batch_size=8, cache_folder=tmp_path),
    )
    pixels = torch.randint(0, 256, (5, 3, 160, 160), dtype=torch.uint8).contiguous(memory_format=torch.channels_last)
    with torch.inference_mode():
        features, logits = made.run(pixels)
        expected = model.network(model.normalize(pixels)).features
    made.close()
    assert logits.shape == (5, 0)
    assert (features - expected).abs().max() < 1e-5 * expected.abs().max()


def test_a_compiled_backend_gives_the_output_of_the_layer(pooled: LoadedModel, tmp_path: Path) -> None:
    model = replace(pooled, placement=backends.place("cpu", "fp32", "compiled"))
    made = backends.make(model, BackendOptions(max_batch_size=2, cache_folder=tmp_path))
    pixels = torch.randint(0, 256, (2, 3, 160, 160), dtype=torch.uint8)
    with torch.inference_mode():
        features, logits = made.run(pixels)
        expected = model.network(model.normalize(pixels)).features
    assert logits.shape == (2, 0)
    assert (features - expected).abs().max() < 1e-4 * expected.abs().max()


def test_batchnorms_of_a_cut_network_are_folded(pooled: LoadedModel, images: torch.Tensor) -> None:
    fused = folded(pooled.network, images)
    assert not any(isinstance(module, nn.BatchNorm2d) for module in fused.modules())


def test_the_engine_warms_up_and_answers_with_features_alone(
    pooled: LoadedModel, engine_for: Callable[[LoadedModel], Engine]
) -> None:
    engine = engine_for(pooled)
    engine.warm_up()
    [output] = engine.run([BatchItem(torch.zeros(3, 160, 160, dtype=torch.uint8), InferenceRequest("features"))])
    assert output.features.shape == (pooled.network.dimensions,)
    assert not len(output.indices)
    assert output.finite


def test_the_lens_compares_features_of_networks_without_classes(
    pooled: LoadedModel, engine_for: Callable[[LoadedModel], Engine]
) -> None:
    comparison = compare_served(engine_for(pooled), ComparisonOptions(batch_size=2, iterations=1))
    reports = {report.arm: report for report in comparison.arms}
    assert tuple(reports) == ARMS
    assert not comparison.left_out
    assert reports["grad"].retained_bytes > 0
    assert reports["grad"].backward.works
    assert reports["inference_mode"].retained_bytes == reports["served"].retained_bytes == 0
    assert reports["train"].train is not None
    assert reports["train"].train.batchnorm_buffers_moved > 0
    assert reports["served"].max_abs_difference is not None
    assert reports["served"].max_abs_difference < 1e-3
    assert all(report.top1_agreement is None for report in comparison.arms)
    assert not any("logits" in sentence or "first places" in sentence for sentence in comparison.sentences)
    # By the names of their makers, not of the cut.
    assert all(not module.module.startswith(("body", "graph")) for module in comparison.modules)
