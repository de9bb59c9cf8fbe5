"""Networks of the user's own code in a model folder: found, built, fingerprinted, kept apart."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from models import backends
from models.interface.errors import ModelFolderError
from models.loading import catalog
from models.loading.load import LoadedModel, load

CPU = backends.place("cpu", "fp32", "eager")

NET = """
import torch
from torch import nn

def build(num_classes=4):
    return nn.Sequential(nn.Conv2d(3, 6, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, num_classes))
"""

TRANSFORM = """
[transform]
resize = 32
crop = 32
interpolation = "bilinear"
mean = [0.5, 0.5, 0.5]
std = [0.5, 0.5, 0.5]
"""

MakeFolder = Callable[..., Path]


@pytest.fixture
def folder_of(tmp_path: Path) -> MakeFolder:
    """A model folder of net.py, or of other files, with random weights."""

    def make(
        name: str = "mine",
        *,
        architecture: str = "net:build",
        more: str = "classes = 3",
        transform: str = TRANSFORM,
        **files: str,
    ) -> Path:
        folder = tmp_path / name
        folder.mkdir()
        for stem, text in {"net": NET, **files}.items():
            (folder / f"{stem}.py").write_text(text)
        (folder / "model.toml").write_text(
            f'architecture = "{architecture}"\nweights = "random"\n{more}\n{transform}\n'
        )
        return folder

    return make


def loaded(folder: Path) -> LoadedModel:
    return load(catalog.find(str(folder)), CPU)


def refused(folder: Path) -> str:
    with pytest.raises(ModelFolderError) as error:
        loaded(folder)
    assert "\n" not in str(error.value)
    return str(error.value).removeprefix(f"{folder / 'model.toml'}: ")


def test_a_callable_of_the_folder_gets_the_number_of_classes(folder_of: MakeFolder) -> None:
    model = loaded(folder_of())
    assert (model.network.classes, model.labels) == (3, ("class 0", "class 1", "class 2"))
    assert model.architecture.startswith("net:build@")
    assert loaded(folder_of("unsaid", more="")).network.classes == 4


def test_the_weights_of_own_code_give_the_number_of_classes(folder_of: MakeFolder) -> None:
    folder = folder_of(more="")
    trained = catalog.find(str(folder_of("trained", more="classes = 7"))).build().module
    torch.save({f"module.{name}": tensor for name, tensor in trained.state_dict().items()}, folder / "model.pt")
    file = folder / "model.toml"
    file.write_text(file.read_text().replace('"random"', '"model.pt"'))
    assert loaded(folder).network.classes == 7


def test_its_code_is_part_of_the_fingerprint(folder_of: MakeFolder) -> None:
    folder = folder_of()
    before = loaded(folder)
    assert loaded(folder).fingerprint == before.fingerprint
    (folder / "net.py").write_text(NET.replace("nn.Conv2d(3, 6, 3)", "nn.Conv2d(3, 6, 3), nn.ReLU()"))
    after = loaded(folder)
    assert after.fingerprint != before.fingerprint
    assert "ReLU" in str(after.network)


def test_folders_with_files_of_the_same_names_do_not_conflict(folder_of: MakeFolder) -> None:
    net = "from .layers import build\n"
    layers = NET.replace("(3, 6, 3)", "(3, 5, 3)").replace("(6,", "(5,")
    first = loaded(folder_of("first", net=net, layers=NET))
    second = loaded(folder_of("second", net=net, layers=layers))
    assert (first.network.dimensions, second.network.dimensions) == (6, 5)
    assert not {"net", "layers"} & set(sys.modules)


def test_a_module_of_the_folder_has_priority_over_an_installed_one(folder_of: MakeFolder) -> None:
    path = list(sys.path)
    assert loaded(folder_of(architecture="models:build", models=NET)).network.classes == 3
    assert sys.path == path
    assert loaded(folder_of("installed", architecture="torchvision.models:shufflenet_v2_x0_5")).network.classes == 3


def test_building_leaves_the_random_state_alone_and_is_the_same_each_time(folder_of: MakeFolder) -> None:
    folder = folder_of()
    assert loaded(folder).fingerprint == loaded(folder).fingerprint
    before = torch.random.get_rng_state()
    catalog.find(str(folder)).build()
    assert torch.random.get_rng_state().equal(before)


@pytest.mark.parametrize(
    ("architecture", "net", "message"),
    [
        ("net:biuld", NET, "net has no 'biuld'; did you mean build?"),
        ("nets:build", NET, "raised ModuleNotFoundError: No module named 'nets'"),
        ("net.py:", NET, "must be module:callable"),
        ("net:size", "size = 3", "size of net cannot be called; it is a int"),
        ("net:build", "def build():\n    return 3", "must make a torch.nn.Module, and made int"),
        ("net:build", "\n\nraise RuntimeError('no way')", "raised RuntimeError in line 3 of net.py: no way"),
        ("net:build", "def build():\n    return 1 / 0", "raised ZeroDivisionError in line 2 of net.py"),
        ("net:build", "def build(:", "raised SyntaxError"),
        ("net:build", "import layers", "write `from .layers import …` there"),
        ("net:build", "import torch\ndef build():\n    return torch.nn.Identity()", "must give logits, (N, C)"),
        ("net:build", "import torch\ndef build():\n    return torch.nn.Linear(5, 2)", "does not run: "),
    ],
)
def test_code_that_cannot_be_served_is_refused_in_one_line(
    folder_of: MakeFolder, architecture: str, net: str, message: str
) -> None:
    text = refused(folder_of(architecture=architecture, net=net, layers="", more=""))
    assert text.startswith("architecture: ")
    assert message in text


def test_own_code_has_no_default_transform(folder_of: MakeFolder) -> None:
    message = refused(folder_of(transform="[transform]\nresize = 32\ncrop = 32"))
    assert message == "transform: code of your own needs all of it, and has no interpolation, mean, std"
    assert refused(folder_of("preset", transform='[transform]\npreset = "timm"')).startswith("transform.preset: ")
