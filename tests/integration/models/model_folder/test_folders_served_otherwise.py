"""Model folders with pruned sizes and with [serve]: errors name the key."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from models import backends
from models.interface.errors import DeviceUnavailableError, ModelFolderError
from models.interface.telemetry import Telemetry
from models.loading import catalog
from models.loading.load import load
from models.model_folder import sizes
from models.networks.specs import ModelSpec
from models.serving.model_instance import ServingOptions
from models.serving.runtime import LocalRuntime

CODE = """
from torch import nn


def build(num_classes=4):
    return nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, num_classes)
    )
"""
SIZES = {
    "0": {"in_channels": 3, "out_channels": 6, "groups": 1},
    "1": {"num_features": 6},
    "4": {"in_features": 6, "out_features": 4},
}

Write = Callable[..., Path]


def pruned() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 4))


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """A folder with the weights of a network that is narrower than its code makes it."""

    def written(toml: str = 'pruned = "pruned.json"', layers: Mapping[str, object] = SIZES, serve: str = "") -> Path:
        folder = tmp_path / "narrow"
        folder.mkdir(exist_ok=True)
        (folder / "net.py").write_text(CODE)
        (folder / "pruned.json").write_text(json.dumps(layers))
        save_file(pruned().state_dict(), folder / "weights.safetensors")
        (folder / "model.toml").write_text(
            f'architecture = "net:build"\nweights = "weights.safetensors"\n{toml}\n'
            f'[transform]\nresize = 36\ncrop = 32\ninterpolation = "bilinear"\n'
            f"mean = [0.5, 0.5, 0.5]\nstd = [0.5, 0.5, 0.5]\n{serve}\n"
        )
        return folder

    return written


def test_the_sizes_of_a_pruned_network_are_those_of_its_layers() -> None:
    fresh = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4))

    assert sizes.differing(pruned(), fresh) == SIZES
    assert sizes.differing(fresh, fresh) == {}
    with pytest.raises(ValueError, match="a LayerNorm has other sizes"):
        sizes.differing(nn.Sequential(nn.LayerNorm(3)), nn.Sequential(nn.LayerNorm(4)))


def test_a_folder_with_sizes_gives_the_outputs_of_the_narrow_network(write: Write) -> None:
    module = catalog.find(str(write())).build().module
    images = torch.rand(2, 3, 32, 32)

    expected = pruned()
    expected.load_state_dict(module.state_dict())
    with torch.no_grad():
        assert torch.equal(module(images), expected.eval()(images))


def test_other_sizes_are_another_architecture(write: Write) -> None:
    first = catalog.find(str(write())).architecture
    assert catalog.find(str(write(layers={**SIZES, "2": {}}))).architecture != first


def test_without_its_sizes_the_weights_do_not_fit(write: Write) -> None:
    with pytest.raises(ModelFolderError, match=r"0\.weight is \(6, 3, 3, 3\), not \(8, 3, 3, 3\)"):
        catalog.find(str(write(toml=""))).build()


@pytest.mark.parametrize(
    ("layers", "message"),
    [
        ({"9": {"num_features": 6}}, "9: there is no such layer"),
        ({"1": {"out_channels": 6}}, "1: BatchNorm2d has num_features, not out_channels"),
        ({"2": {"num_features": 6}}, "2: AdaptiveAvgPool2d has no sizes to set, not num_features"),
        ({"1": {"num_features": 0}}, "1: num_features must be a whole number from 1 to 1000000, not 0"),
        ({"0": {"in_channels": 3, "out_channels": 6, "groups": 2}}, "0: 2 groups do not divide 3 and 6 channels"),
        (["0"], "must be sizes by the names of layers"),
    ],
)
def test_invalid_sizes_are_refused_with_the_name_of_the_layer(write: Write, layers: object, message: str) -> None:
    with pytest.raises(ModelFolderError, match=message) as refused:
        catalog.find(str(write(layers=layers))).build()
    assert "pruned.json" in str(refused.value)


@pytest.mark.parametrize(
    ("serve", "message"),
    [
        ('precision = "int4"', r"serve\.precision: must be one of fp32, bf16, fp16, int8, not 'int4'"),
        ('precision = "int8"', r"serve\.quantized: goes with precision int8"),
        ('precision = "bf16"\nquantized = "net.py"', r"serve\.quantized: goes with precision int8"),
        ('precision = "int8"\nquantized = "int8.xml"', r"serve\.quantized: there is no file 'int8\.xml'"),
        ('precision = "int8"\nquantized = "net.py"', r"serve\.quantized: there is no file 'net\.bin'"),
        ('quantized = "net.py"', r"serve\.quantized: goes with precision int8"),
        ("max_batch_size = 0", r"serve\.max_batch_size: must be a whole number from 1 to 1024, not 0"),
        ("threads = 3", r"serve\.threads: there is no such key"),
    ],
)
def test_an_error_in_serve_names_its_key(write: Write, serve: str, message: str) -> None:
    with pytest.raises(ModelFolderError, match=message):
        catalog.find(str(write(serve=f"[serve]\n{serve}")))


def test_sizes_without_a_file_of_weights_are_refused(write: Write) -> None:
    toml = write() / "model.toml"
    toml.write_text(toml.read_text().replace('"weights.safetensors"', '"random"'))
    with pytest.raises(ModelFolderError, match="pruned: goes with a file of weights"):
        catalog.find(str(toml.parent))


def test_the_precision_of_a_folder_takes_precedence_over_the_setting(write: Write) -> None:
    spec = catalog.find(str(write(serve='[serve]\nprecision = "bf16"')))
    assert load(spec, backends.place("cpu", "fp32", "eager")).placement.precision == "bf16"
    spec = catalog.find(str(write(serve="[serve]\nmax_batch_size = 3")))
    assert load(spec, backends.place("cpu", "bf16", "eager")).placement.precision == "bf16"
    spec = catalog.find(str(write(serve='[serve]\nprecision = "fp16"')))
    with pytest.raises(DeviceUnavailableError, match="fp16 is for GPUs"):
        load(spec, backends.place("cpu", "fp32", "eager"))


def test_the_maximum_batch_size_of_a_folder_takes_precedence_over_the_setting(write: Write, tiny: ModelSpec) -> None:
    spec = catalog.find(str(write(serve="[serve]\nmax_batch_size = 3")))
    runtime = LocalRuntime(
        ServingOptions(models=[spec, tiny], device="cpu", backend="eager", max_batch_size=2), Telemetry()
    )
    found = {instance.model: state.max_batch_size for instance, state in runtime.instances().items()}
    runtime.close(timeout_s=10)
    assert found == {spec.name: 3, tiny.name: 2}
