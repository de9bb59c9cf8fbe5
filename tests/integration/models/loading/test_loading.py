"""Loading: one forward yields features and logits, the fingerprint covers what vectors depend on, and parameters
stay ones that autograd can use."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from app.main import serving_options
from app.settings import Settings
from models import backends
from models.hardware.placement import Precision
from models.images import preprocessing
from models.images.preprocessing import Transform
from models.interface.errors import StartError
from models.loading.load import load
from models.networks.specs import Classifier, ModelSpec

CPU = backends.place("cpu", "fp32", "eager")


def changed(spec: ModelSpec, *, transform: Transform | None = None, module: nn.Module | None = None) -> ModelSpec:
    """`spec` with another transform or module."""

    def build() -> Classifier:
        built = spec.build()
        return Classifier(module or built.module, transform or built.transform, built.labels)

    return ModelSpec(spec.name, spec.architecture, build)


def test_one_forward_gives_the_logits_of_the_uncut_module_and_the_input_of_its_head(tiny: ModelSpec) -> None:
    whole = tiny.build().module.eval()
    network = load(tiny, CPU).network
    images = torch.rand(5, 3, 32, 32)
    features, logits = network(images)
    assert features.shape == (5, network.dimensions) == (5, 16)
    assert logits.shape == (5, network.classes) == (5, 10)
    assert network.head(features).equal(logits)
    assert whole(images).equal(logits)


def test_the_same_model_has_the_same_fingerprint(tiny: ModelSpec) -> None:
    assert load(tiny, CPU).fingerprint == load(tiny, CPU).fingerprint


def test_one_changed_weight_changes_the_fingerprint(tiny: ModelSpec) -> None:
    module = tiny.build().module
    with torch.no_grad():
        next(module.parameters()).view(-1)[0] += 1e-3
    assert load(changed(tiny, module=module), CPU).fingerprint != load(tiny, CPU).fingerprint


def test_one_changed_buffer_changes_the_fingerprint(tiny: ModelSpec) -> None:
    module = tiny.build().module
    next(module.buffers())[0] += 1e-3
    assert load(changed(tiny, module=module), CPU).fingerprint != load(tiny, CPU).fingerprint


@pytest.mark.parametrize(
    "transform",
    [
        Transform(40, 32, "bilinear", (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
        Transform(36, 32, "bicubic", (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
        Transform(36, 32, "bilinear", (0.4, 0.5, 0.5), (0.5, 0.5, 0.5)),
        Transform(36, 32, "bilinear", (0.5, 0.5, 0.5), (0.5, 0.5, 0.4)),
        Transform(36, 32, "bilinear", (0.5, 0.5, 0.5), (0.5, 0.5, 0.5), exact_jpeg=True),
    ],
)
def test_another_transform_changes_the_fingerprint(tiny: ModelSpec, transform: Transform) -> None:
    assert load(changed(tiny, transform=transform), CPU).fingerprint != load(tiny, CPU).fingerprint


def test_the_size_of_reduced_jpegs_is_part_of_the_fingerprint(tiny: ModelSpec, monkeypatch: pytest.MonkeyPatch) -> None:
    before = load(tiny, CPU).fingerprint
    monkeypatch.setattr(preprocessing, "_OVERSAMPLING", 99)
    assert load(tiny, CPU).fingerprint != before


def test_exact_jpegs_may_be_asked_for_whatever_the_transform_says(tiny: ModelSpec) -> None:
    asked = load(tiny, CPU, exact_jpeg=True)
    assert asked.transform.exact_jpeg
    assert asked.fingerprint != load(tiny, CPU).fingerprint


def test_another_precision_changes_the_fingerprint(tiny: ModelSpec) -> None:
    assert load(tiny, backends.place("cpu", "bf16", "eager")).fingerprint != load(tiny, CPU).fingerprint


def test_the_same_weights_in_another_activation_have_another_fingerprint(tiny: ModelSpec) -> None:
    module = tiny.build().module
    module[5] = nn.GELU()
    spec = changed(tiny, module=module)
    other = ModelSpec(spec.name, "tiny-convnet-gelu", spec.build)
    assert load(other, CPU).fingerprint != load(tiny, CPU).fingerprint


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_parameters_stay_ones_that_autograd_can_use(tiny: ModelSpec, precision: Precision) -> None:
    model = load(tiny, backends.place("cpu", precision, "eager"))
    assert all(parameter.requires_grad for parameter in model.network.parameters())
    assert not any(tensor.is_inference() for tensor in model.network.state_dict().values())
    assert not any(buffer.is_inference() for buffer in model.normalize.buffers())


def test_a_loaded_model_is_in_eval_mode_throughout(tiny: ModelSpec) -> None:
    model = load(tiny, CPU)
    assert not any(module.training for module in model.network.modules())


def test_loading_inside_inference_mode_is_refused(tiny: ModelSpec) -> None:
    with torch.inference_mode(), pytest.raises(StartError, match="outside inference_mode"):
        load(tiny, CPU)


def test_labels_must_be_as_many_as_classes(tiny: ModelSpec) -> None:
    def build() -> Classifier:
        built = tiny.build()
        return Classifier(built.module, built.transform, built.labels[:-1])

    with pytest.raises(StartError, match="10 classes and 9 labels"):
        load(ModelSpec("tiny", "tiny-convnet", build), CPU)


def test_sizes_count_parameters_and_buffers(tiny: ModelSpec) -> None:
    module = tiny.build().module
    model = load(tiny, CPU)
    assert model.parameters == sum(parameter.numel() for parameter in module.parameters())
    assert model.weight_bytes == sum(tensor.nbytes for tensor in module.state_dict().values())


def test_the_setting_of_exact_jpegs_reaches_the_models() -> None:
    assert not serving_options(Settings()).exact_jpeg
    assert serving_options(Settings(exact_jpeg=True)).exact_jpeg
