"""model.toml: valid values are read, invalid ones are refused in one line that names file and key."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from models.interface.errors import ModelFolderError
from models.interface.model_sources import ServedAs
from models.model_folder import description
from models.model_folder.description import Reference

Written = Callable[[str], Path]

LEAST = 'architecture = "resnet18"\nweights = "model.pt"\n'
REFERENCE = LEAST + '[reference]\nimage = "rose.jpg"\nlabel = "rose"\n'


@pytest.fixture
def written(tmp_path: Path) -> Written:
    """A folder named flowers with that model.toml, a checkpoint, labels and a picture, all of them empty."""

    def write(text: str) -> Path:
        folder = tmp_path / "flowers"
        folder.mkdir()
        for name in ("model.pt", "labels.txt", "rose.jpg"):
            (folder / name).touch()
        (folder / "model.toml").write_text(text, encoding="utf-8")
        return folder

    return write


def test_missing_keys_default_to_the_folders_name_and_the_architectures_values(written: Written) -> None:
    folder = written(LEAST)
    read = description.read(folder)
    assert (read.name, read.architecture, read.weights) == ("flowers", "resnet18", folder / "model.pt")
    assert (read.labels, read.classes, read.features, read.feature_form) == (None, None, None, "pooled")
    assert (read.transform.preset, read.transform.explicit, read.reference) == (None, {}, None)
    assert read.serve == ServedAs()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (LEAST + "# " + "x" * 2**20, "is larger than 1 MiB"),
        (LEAST + "labels = " + "[" * 100_000, "is not TOML"),
    ],
    ids=["large", "deep"],
)
def test_a_description_that_is_too_large_is_refused(written: Written, text: str, message: str) -> None:
    with pytest.raises(ModelFolderError, match=message):
        description.read(written(text))


def test_every_key_is_read(written: Written) -> None:
    folder = written("""
        name = "roses-2"
        architecture = "timm/resnet18"
        weights = "model.pt"
        labels = ["rose", "tulip"]
        classes = 2
        [transform]
        preset = "timm"
        resize = 72
        crop = 64
        interpolation = "bicubic"
        mean = [0.5, 0, 1]
        std = [0.5, 0.5, 1]
        fit = "stretch"
        exact_jpeg = true
        [reference]
        image = "rose.jpg"
        label = "rose"
        probability = 0.9
        tolerance = 0
        [serve]
        max_batch_size = 8
        """)
    read = description.read(folder)
    assert (read.name, read.labels, read.classes) == ("roses-2", ("rose", "tulip"), 2)
    assert read.transform.preset == "timm"
    assert read.transform.explicit == {
        "resize": 72,
        "crop": 64,
        "interpolation": "bicubic",
        "mean": (0.5, 0.0, 1.0),
        "std": (0.5, 0.5, 1.0),
        "fit": "stretch",
        "exact_jpeg": True,
    }
    assert read.reference == Reference(folder / "rose.jpg", "rose", probability=0.9, tolerance=0.0)
    assert read.serve == ServedAs(max_batch_size=8)


def test_an_inner_layer_has_a_form(written: Written) -> None:
    read = description.read(written(LEAST + 'features = "layer3"\nfeature_form = "map"\n'))
    assert (read.features, read.feature_form) == ("layer3", "map")


@pytest.mark.parametrize("word", ["published", "random"])
def test_weights_may_be_published_or_random(written: Written, word: str) -> None:
    assert description.read(written(f'architecture = "resnet18"\nweights = "{word}"\n')).weights == word


@pytest.mark.parametrize(
    ("text", "key", "message"),
    [
        ('weights = "model.pt"', "architecture", "is missing"),
        ('architecture = "resnet18"', "weights", "is missing"),
        (LEAST + 'lables = "labels.txt"', "lables", "did you mean labels?"),
        (LEAST + "qqqq = 1", "qqqq", "there is name, architecture"),
        (LEAST + "[transform]\nresise = 3", "transform.resise", "did you mean resize?"),
        (LEAST + "transform = 3", "transform", "must be a table, [transform]"),
        ("architecture = 3", "architecture", "must be a text"),
        (LEAST + 'name = "a b"', "name", "must be letters, digits"),
        (LEAST + 'name = "a,b"', "name", "must be letters, digits"),
        (LEAST + "classes = true", "classes", "must be a whole number from 0"),
        (LEAST + "classes = 2.0", "classes", "must be a whole number from 0"),
        (LEAST + "classes = -1", "classes", "must be a whole number from 0"),
        (LEAST + "labels = []", "labels", "must be a list of texts"),
        (LEAST + 'labels = ["a", 3]', "labels", "must be a list of texts"),
        (LEAST + 'labels = "label.txt"', "labels", "did you mean 'labels.txt'?"),
        (LEAST + 'feature_form = "map"', "feature_form", 'say features = "layer3"'),
        (LEAST + 'features = "a"\nfeature_form = "flat"', "feature_form", "must be one of pooled, map"),
        (LEAST + '[transform]\npreset = "mine"', "transform.preset", "must be one of torchvision, timm"),
        (LEAST + "[transform]\nexact_jpeg = 1", "transform.exact_jpeg", "must be true or false"),
        (LEAST + "[transform]\ncrop = 0", "transform.crop", "must be a whole number from 1"),
        (LEAST + '[transform]\ninterpolation = "nearest"', "transform.interpolation", "bilinear, bicubic"),
        (LEAST + "[transform]\nmean = [1, 2]", "transform.mean", "must be three numbers"),
        (LEAST + "[transform]\nmean = [nan, 0, 0]", "transform.mean", "must be three numbers"),
        (LEAST + "[transform]\nstd = [1, 0, 1]", "transform.std", "more than 0"),
        (LEAST + '[reference]\nlabel = "rose"', "reference.image", "is missing"),
        (LEAST + '[reference]\nimage = "rose.jpg"', "reference.label", "is missing"),
        (REFERENCE + "probability = 1.5", "reference.probability", "must be a number from 0 to 1"),
        (REFERENCE + "tolerance = 0.1", "reference.tolerance", "goes with probability"),
        (LEAST + 'features = "layer3"\n' + REFERENCE.removeprefix(LEAST), "reference", "there are no classes"),
    ],
)
def test_an_invalid_value_is_refused_in_a_line_that_names_the_key(
    written: Written, text: str, key: str, message: str
) -> None:
    folder = written(text)
    with pytest.raises(ModelFolderError) as refused:
        description.read(folder)
    assert str(refused.value).startswith(f"{folder / 'model.toml'}: {key}: ")
    assert message in str(refused.value)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("path", ["../secret.pt", "/etc/passwd", "a/../../secret.pt", "leads-out.pt"])
def test_a_path_that_leads_out_of_the_folder_is_refused(written: Written, path: str) -> None:
    folder = written(f'architecture = "resnet18"\nweights = "{path}"\n')
    (folder.parent / "secret.pt").touch()
    (folder / "leads-out.pt").symlink_to(folder.parent / "secret.pt")
    with pytest.raises(ModelFolderError, match=r"weights: must be a file inside .*flowers"):
        description.read(folder)


def test_invalid_toml_is_refused_with_its_line(written: Written) -> None:
    with pytest.raises(ModelFolderError, match=r"model\.toml: is not TOML: .*line 3"):
        description.read(written(LEAST + "=\n"))


def test_the_error_for_a_folder_without_model_toml_names_the_command_that_writes_it(tmp_path: Path) -> None:
    with pytest.raises(ModelFolderError, match=r"no model\.toml; `gradless models init .*` writes one"):
        description.read(tmp_path)


def test_a_missing_folder_is_an_error_that_names_it(tmp_path: Path) -> None:
    with pytest.raises(ModelFolderError, match=r"nowhere: there is no such folder"):
        description.read(tmp_path / "nowhere")


def test_a_folder_without_a_valid_model_name_needs_a_name(written: Written) -> None:
    folder = written(LEAST)
    spaced = folder.rename(folder.with_name("my flowers"))
    with pytest.raises(ModelFolderError, match=r"name: must be letters, .*'my flowers', is none: set it"):
        description.read(spaced)
