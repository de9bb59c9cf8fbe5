"""Model folders become models: built, named, fingerprinted and written again, their parts held to one another."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torchvision
from torch import nn

from models import backends
from models.images import preprocessing
from models.interface.errors import ModelFolderError, StartError, UnknownCatalogNameError
from models.interface.telemetry import Telemetry
from models.loading import catalog
from models.loading.load import LoadedModel, load
from models.model_folder import writing
from models.networks.specs import Classifier, FeatureLayer
from models.serving.runtime import LocalRuntime, ServingOptions

CPU = backends.place("cpu", "fp32", "eager")
ARCHITECTURE = "shufflenet_v2_x0_5"

MakeFolder = Callable[..., Path]


@pytest.fixture(scope="module")
def trained() -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(7)
        module: nn.Module = torchvision.models.get_model(ARCHITECTURE, num_classes=3)
        return module.eval()


@pytest.fixture
def folder_of(tmp_path: Path, trained: nn.Module) -> MakeFolder:
    """Return a folder with the trained network's state dict, labels, and a model.toml with `more` lines."""

    def make(more: str = "", *, name: str = "mine", labels: str = 'labels = "labels.txt"') -> Path:
        folder = tmp_path / name
        folder.mkdir()
        torch.save(trained.state_dict(), folder / "model.pt")
        (folder / "labels.txt").write_text("cat\ndog\nfox\n")
        (folder / "model.toml").write_text(f'architecture = "{ARCHITECTURE}"\nweights = "model.pt"\n{labels}\n{more}\n')
        return folder

    return make


def loaded(folder: Path) -> LoadedModel:
    return load(catalog.find(str(folder)), CPU)


def refused(folder: Path) -> str:
    with pytest.raises(ModelFolderError) as error:
        loaded(folder)
    assert "\n" not in str(error.value)
    return str(error.value).removeprefix(f"{folder / 'model.toml'}: ")


def test_a_folder_is_its_weights_labels_and_transform(folder_of: MakeFolder, trained: nn.Module) -> None:
    model = loaded(folder_of("[transform]\nresize = 72\ncrop = 64\nmean = [0.5, 0.5, 0.5]"))
    preset = catalog.find(f"{ARCHITECTURE}:random").build().transform
    images = torch.rand(2, 3, 64, 64)
    assert (model.name, model.architecture, model.labels) == ("mine", ARCHITECTURE, ("cat", "dog", "fox"))
    assert model.transform == replace(preset, resize=72, crop=64, mean=(0.5, 0.5, 0.5))
    with torch.no_grad():
        assert model.network(images).logits.equal(trained(images))


def test_a_folder_that_has_moved_is_the_same_model(folder_of: MakeFolder, tmp_path: Path) -> None:
    folder = folder_of('name = "kept"')
    before = loaded(folder)
    after = loaded(folder.rename(tmp_path / "elsewhere"))
    assert (before.name, before.fingerprint) == (after.name, after.fingerprint)


def test_classes_without_names_are_counted_from_the_weights(folder_of: MakeFolder) -> None:
    assert loaded(folder_of(labels="")).labels == ("class 0", "class 1", "class 2")


def test_labels_classes_and_weights_must_agree(folder_of: MakeFolder) -> None:
    assert refused(folder_of("classes = 4", name="a")) == "classes: is 4, and labels has 3 names"
    assert refused(folder_of("classes = 4", name="b", labels="")) == "classes: is 4, and model.pt is of 3"
    assert refused(folder_of(name="c", labels='labels = ["cat", "dog"]')).startswith("labels: has another number")


def test_an_unknown_architecture_is_refused_with_a_suggestion(folder_of: MakeFolder) -> None:
    folder = folder_of()
    file = folder / "model.toml"
    file.write_text(file.read_text().replace(ARCHITECTURE, "shufflenet_v2_x0_6"))
    assert refused(folder).startswith("architecture: there is no 'shufflenet_v2_x0_6'; did you mean shufflenet_v2_x")


def test_an_invalid_transform_is_refused(folder_of: MakeFolder) -> None:
    assert refused(folder_of("[transform]\nresize = 64", name="a")).startswith("transform.crop: is 224, more than")
    message = refused(folder_of('[transform]\npreset = "timm"', name="b"))
    assert message == f"transform.preset: that of {ARCHITECTURE} is 'torchvision', not 'timm'"


def test_a_reference_of_an_unknown_class_is_refused_with_a_suggestion(folder_of: MakeFolder) -> None:
    folder = folder_of('[reference]\nimage = "a.png"\nlabel = "cats"')
    (folder / "a.png").touch()
    assert refused(folder) == "reference.label: no class is named 'cats'; did you mean 'cat'?"


def test_an_inner_layer_is_served_without_classes(folder_of: MakeFolder, trained: nn.Module) -> None:
    model = loaded(folder_of('features = "stage3"'))
    assert (model.features, model.labels) == (FeatureLayer("stage3", "pooled"), ())
    assert model.parameters < sum(parameter.numel() for parameter in trained.parameters())


def test_an_error_in_a_layer_or_a_file_names_the_key_that_names_it(folder_of: MakeFolder) -> None:
    assert refused(folder_of('features = "stage9"', name="a")).startswith("features: it has no layer 'stage9'; ")
    unlabelled = folder_of(name="b")
    (unlabelled / "labels.txt").write_text("cat\n\nfox\n")
    assert refused(unlabelled) == "labels: labels.txt: line 2 is empty, and would be the name of class 1"
    misfit = folder_of(name="c")
    torch.save({"fc.weight": torch.ones(3, 7), "fc.bias": torch.ones(3)}, misfit / "model.pt")
    assert refused(misfit).startswith(f"weights: model.pt: does not fit {ARCHITECTURE} of 3 classes: ")
    broken = folder_of(name="d")
    (broken / "model.pt").write_bytes(b"")
    assert refused(broken).startswith("weights: model.pt: is no checkpoint that torch.save has written")
    pruned = folder_of('pruned = "sizes.json"', name="e")
    (pruned / "sizes.json").write_text('{"conv9": {"out_channels": 40}}')
    assert refused(pruned) == "pruned: sizes.json: conv9: there is no such layer in the architecture"


def test_random_weights_are_seeded_and_have_the_requested_number_of_classes(tmp_path: Path) -> None:
    (tmp_path / "model.toml").write_text(
        f'name = "tried"\narchitecture = "{ARCHITECTURE}"\nweights = "random"\nclasses = 5\n'
    )
    assert loaded(tmp_path).network.classes == 5
    assert loaded(tmp_path).fingerprint == loaded(tmp_path).fingerprint


def test_paths_are_distinguished_from_names(
    folder_of: MakeFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder_of(name="resnet18")
    folder_of(name="mine")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert catalog.find("resnet18").architecture == "resnet18"
    assert catalog.find("./resnet18").architecture == ARCHITECTURE
    assert {catalog.find(path).name for path in ("mine", "./mine", "~/mine", str(tmp_path / "mine"))} == {"mine"}
    with pytest.raises(UnknownCatalogNameError, match="'mime'"):
        catalog.find("mime")
    with pytest.raises(ModelFolderError, match="mime: there is no such folder"):
        catalog.find("./mime")


def test_a_folder_behind_a_link_has_the_name_of_the_link(folder_of: MakeFolder, tmp_path: Path) -> None:
    (tmp_path / "flowers").symlink_to(folder_of(name="flowers-2"))
    assert catalog.find(str(tmp_path / "flowers")).name == "flowers"
    assert catalog.find(f"{tmp_path}/flowers-2/../flowers/.").name == "flowers"


@pytest.mark.parametrize(
    ("path", "reason"),
    [
        ("mine/model.pt", "is a file of a model folder; name the folder, mine"),
        ("mine/model.toml", "is a file of a model folder; name the folder, mine"),
        ("photo.jpg", "is a file, and not a model folder"),
        ("empty", "there is no model.toml; `gradless models init empty` writes one"),
        ("best.pt", "Make one of it: mkdir -p best && cp best.pt best && gradless models init best"),
        ("./best.pt", "Make one of it: mkdir -p best && cp best.pt best && gradless models init best"),
        (
            "epoch 3.safetensors",
            "cp 'epoch 3.safetensors' my-model && gradless models init my-model",
        ),
    ],
)
def test_a_path_to_anything_but_a_model_folder_is_refused_with_the_way_to_one(
    folder_of: MakeFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, path: str, reason: str
) -> None:
    folder_of(name="mine")
    (tmp_path / "empty").mkdir()
    for name in ("photo.jpg", "best.pt", "epoch 3.safetensors"):
        (tmp_path / name).touch()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ModelFolderError) as error:
        catalog.find(path)
    assert str(error.value).endswith(reason)


def test_two_models_of_one_name_are_refused_before_any_is_loaded(folder_of: MakeFolder) -> None:
    both = (str(folder_of(name="a")), str(folder_of('name = "a"', name="b")))
    with pytest.raises(StartError, match=r"two models are named a; `name` in a model\.toml can say another"):
        LocalRuntime(ServingOptions(models=both, backend="eager"), Telemetry())


@pytest.mark.parametrize("features", [None, FeatureLayer("stage3", "map")])
def test_a_written_folder_gives_the_same_results(
    folder_of: MakeFolder, tmp_path: Path, features: FeatureLayer | None
) -> None:
    spec = catalog.find(str(folder_of("[transform]\ncrop = 64")))
    classifier = replace(spec.build(), features=features)
    writing.write(tmp_path / "copy", classifier, name="mine", architecture=ARCHITECTURE)
    copy = catalog.find(str(tmp_path / "copy"))
    original = load(replace(spec, build=lambda: classifier), CPU)
    assert load(copy, CPU).fingerprint == original.fingerprint
    assert (copy.name, load(copy, CPU).labels, load(copy, CPU).features) == ("mine", original.labels, features)
    with pytest.raises(ModelFolderError, match="is there already, and is not overwritten"):
        writing.write(tmp_path / "copy", spec.build(), name="mine", architecture=ARCHITECTURE)


def test_tensors_that_share_their_memory_can_be_written(tmp_path: Path) -> None:
    tied = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    tied[1].weight = tied[0].weight
    transform = preprocessing.Transform(64, 64, "bilinear", (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
    writing.write(tmp_path, Classifier(tied, transform, ("é", "b\n", "c")), name="t", architecture="net:build")
    assert json.loads((tmp_path / "labels.json").read_text()) == ["é", "b\n", "c"]
