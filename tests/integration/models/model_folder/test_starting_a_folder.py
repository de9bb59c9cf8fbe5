"""`gradless models init` writes a model.toml from the content of a folder, and names what it cannot infer."""

from __future__ import annotations

from pathlib import Path

import pytest
import timm
import torch
import torchvision
from torch import nn

from models import backends
from models.interface.errors import ModelFolderError
from models.loading import catalog
from models.loading.load import load
from models.model_folder import fitting
from models.model_folder.writing import start

CPU = backends.place("cpu", "fp32", "eager")


def network(name: str, classes: int) -> nn.Module:
    module: nn.Module = torchvision.models.get_model(name, num_classes=classes)
    return module


@pytest.mark.parametrize("name", ["resnet34", "mobilenet_v3_small", "mnasnet0_5"])
def test_an_architecture_of_torchvision_is_recognized_by_its_tensors_for_any_number_of_classes(name: str) -> None:
    state = {f"module.{key}": tensor for key, tensor in network(name, 7).state_dict().items()}
    assert fitting.guess(state) == fitting.Guess(name, 1.0)


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_architectures_of_timm_are_recognized_and_unknown_ones_are_not() -> None:
    assert fitting.guess(timm.create_model("test_resnet", num_classes=7).state_dict()) == fitting.Guess(
        "timm/test_resnet", 1.0
    )
    assert fitting.guess({"mine.weight": torch.ones(3)}) is None


def test_a_network_is_inspected_without_allocating_its_parameters() -> None:
    devices_seen = set()

    def build(classes: int | None) -> nn.Module:
        module = network("regnet_y_128gf", classes or 1000)
        devices_seen.update(parameter.device.type for parameter in module.parameters())
        return module

    assert fitting.shapes(build, 5)["fc.weight"] == (5, 7392)
    assert devices_seen == {"meta"}


def test_a_folder_with_weights_becomes_a_model_that_can_be_served(tmp_path: Path) -> None:
    torch.save(network("resnet18", 3).state_dict(), tmp_path / "model.pt")
    (tmp_path / "classes.txt").write_text("cat\ndog\nfox\n")
    started = start(tmp_path, resize=72, crop=64)
    assert (started.transform.resize, started.transform.crop, started.transform.interpolation) == (72, 64, "bilinear")
    assert (started.architecture, started.weights, started.labels, started.classes) == (
        "resnet18",
        "model.pt",
        "classes.txt",
        3,
    )
    folder = tmp_path.rename(tmp_path.with_name("pets"))
    model = load(catalog.find(str(folder)), CPU)
    assert (model.name, model.labels, model.transform.resize, model.transform.crop) == (
        "pets",
        ("cat", "dog", "fox"),
        72,
        64,
    )


def test_commented_lines_of_a_new_model_toml_are_valid(tmp_path: Path) -> None:
    torch.save(network("resnet18", 3).state_dict(), tmp_path / "model.pt")
    start(tmp_path, architecture="resnet18")
    file = tmp_path / "model.toml"
    (tmp_path / "labels.txt").write_text("cat\ndog\nfox\n")
    (tmp_path / "picture.jpg").touch()
    message = file.read_text().replace('# label = "its class"', '# label = "cat"').splitlines()
    keys = [line.removeprefix("# ") if " = " in line or line == "# [reference]" else line for line in message]
    file.write_text("\n".join(line for line in keys if not line.startswith("feature")))
    assert load(catalog.find(str(tmp_path)), CPU).labels == ("cat", "dog", "fox")


def test_the_template_for_own_code_has_a_complete_transform(tmp_path: Path) -> None:
    (tmp_path / "net.py").write_text("from torchvision.models import resnet18\n")
    torch.save(network("resnet18", 3).state_dict(), tmp_path / "model.pt")
    assert start(tmp_path, architecture="net:resnet18", crop=64).classes is None
    model = load(catalog.find(str(tmp_path)), CPU)
    assert (model.network.classes, model.transform.resize, model.transform.crop) == (3, 256, 64)


def test_values_that_cannot_be_inferred_are_requested(tmp_path: Path) -> None:
    with pytest.raises(ModelFolderError, match="there is no checkpoint in it"):
        start(tmp_path)
    torch.save(network("resnet18", 3).state_dict(), tmp_path / "a.pt")
    torch.save({}, tmp_path / "b.pt")
    with pytest.raises(ModelFolderError, match=r"several checkpoints in it, a\.pt, b\.pt: choose by --weights"):
        start(tmp_path)
    with pytest.raises(ModelFolderError, match=r"there is no c\.pt in it"):
        start(tmp_path, weights="c.pt")
    with pytest.raises(ModelFolderError, match=r"there is no 'resnet81'; did you mean"):
        start(tmp_path, weights="a.pt", architecture="resnet81")
    assert not (tmp_path / "model.toml").exists()
    start(tmp_path, weights="a.pt", architecture="resnet18")
    with pytest.raises(ModelFolderError, match="is there already, and is not overwritten"):
        start(tmp_path, weights="a.pt", architecture="resnet18")
