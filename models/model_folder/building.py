"""From a model folder to a model: network, weights, labels and transform, which must fit each other."""

from __future__ import annotations

import difflib
import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import torch
from torch import nn

from models.images.preprocessing import Transform
from models.interface.errors import ModelFolderError
from models.model_folder import checkpoint, description, fitting, own_code, sizes
from models.model_folder.description import MIB, MOST_CLASSES, NEEDED_OF_TRANSFORM, Description, read_bounded
from models.networks import architectures
from models.networks.specs import Architecture, Classifier, FeatureLayer, ModelSpec

# Makes the network, given the number of classes; None is the architecture's own number.
Build = Callable[[int | None], nn.Module]

# A million classes of 32 bytes each.
_MOST_BYTES_OF_LABELS = 32 * MIB

# Names are part of every response.
_LONGEST_NAME = 1000


def find(folder: Path) -> ModelSpec:
    """Return the model in `folder`. Its weights are read when it is built. Raises ModelFolderError."""
    described = description.read(folder)
    architecture = described.architecture
    if own_code.is_own(architecture):
        digest = own_code.digest(described)
        # The fingerprint hashes this name, because the results depend on the code.
        architecture = architecture if digest is None else f"{architecture}@{digest}"
    elif (reason := unknown(architecture)) is not None:
        raise described.refusal("architecture", reason)
    if described.pruned is not None:
        architecture = f"{architecture}@{sizes.digest(described.pruned)}"
    return ModelSpec(described.name, architecture, lambda: build(described), served_as=described.serve, folder=folder)


def unknown(architecture: str) -> str | None:
    """Return the message that there is no such architecture, with similar names; None if there is one."""
    if architectures.exists(architecture):
        return None
    similar = architectures.similar(architecture, architectures.names())
    return f"there is no {architecture!r}; " + (
        f"did you mean {', '.join(similar)}?" if similar else "`gradless models` lists them"
    )


def build(described: Description) -> Classifier:
    """Return the network with its weights, labels and transform, on the CPU, in float32. Raises StartError."""
    architecture = None if own_code.is_own(described.architecture) else architectures.find(described.architecture)
    builder = _builder(described)
    transform = transform_of(described)
    named = _described_labels(described)
    count = described.classes if named is None else len(named)
    module = _module(described, architecture, builder, count).float().eval()
    if named is None:
        named = _default_labels(described, architecture, module, transform)
    _check_reference(described, named)
    features = None if described.features is None else FeatureLayer(described.features, described.feature_form)
    return Classifier(module, transform, named, features)


def unpruned(described: Description) -> Build:
    """Return the builder of the architecture before pruning. Raises StartError."""
    if own_code.is_own(described.architecture):
        return own_code.builder(described)
    return architectures.find(described.architecture).build


def _builder(described: Description) -> Build:
    whole, file = unpruned(described), described.pruned
    if file is None:
        return whole
    with _errors_name_key(described, "pruned"):
        layers = sizes.read(file)

    def build(classes: int | None) -> nn.Module:
        module = whole(classes)
        with _errors_name_key(described, "pruned"):
            return sizes.resize(module, layers, file)

    return build


def _described_labels(described: Description) -> tuple[str, ...] | None:
    """Return the labels of the description. Raises ModelFolderError unless there are as many as `classes` says."""
    with _errors_name_key(described, "labels"):
        named = read_labels(described.labels) if isinstance(described.labels, Path) else described.labels
    if named is not None and described.classes not in {None, len(named)}:
        raise described.refusal("classes", f"is {described.classes}, and labels has {len(named)} names")
    return named


def _check_reference(described: Description, named: tuple[str, ...]) -> None:
    if described.reference is not None and described.reference.label not in named:
        similar = difflib.get_close_matches(described.reference.label, named, n=1)
        hint = f"; did you mean {similar[0]!r}?" if similar else ""
        raise described.refusal("reference.label", f"no class is named {described.reference.label!r}{hint}")


def _module(described: Description, architecture: Architecture | None, build: Build, wanted: int | None) -> nn.Module:
    match described.weights:
        case "published":
            if architecture is None:
                raise described.refusal("weights", "there are no published ones for code of your own; name a file")
            published = len(architecture.labels)
            if wanted not in {None, published}:
                raise described.refusal(*_counted(described, f"the published weights are of {published}"))
            return architecture.published()
        case "random":
            return build(wanted)
        case file:
            return _of_file(described, build, wanted, file)


def _of_file(described: Description, build: Build, wanted: int | None, file: Path) -> nn.Module:
    with _errors_name_key(described, "weights"):
        tensors = checkpoint.read(file)
    held = fitting.classes_of(tensors, build)
    if None not in {held, wanted} and held != wanted:
        raise described.refusal(*_counted(described, f"{file.name} is of {held}"))
    count = wanted if held is None else held
    module = build(count)
    with _errors_name_key(described, "weights"):
        what = described.architecture + (f" of {count} classes" if count is not None else "")
        fitting.load(module, tensors, file, what)
    return module


@contextmanager
def _errors_name_key(described: Description, key: str) -> Iterator[None]:
    """Make errors in the file that `key` names errors of the key, which the user can correct."""
    try:
        yield
    except ModelFolderError as error:
        where = error.file.name if error.key is None else f"{error.file.name}: {error.key}"
        raise described.refusal(key, f"{where}: {error.reason}") from error


def _counted(described: Description, other: str) -> tuple[str, str]:
    """Return the key that states the number of classes, and what is wrong with it."""
    if described.classes is not None:
        return "classes", f"is {described.classes}, and {other}"
    return "labels", f"has another number of names than there are classes: {other}"


def transform_of(described: Description) -> Transform:
    """Return the architecture's transform with the changes of the description. Raises ModelFolderError."""
    preset, explicit = described.transform.preset, described.transform.explicit
    if own_code.is_own(described.architecture):
        if preset is not None:
            raise described.refusal("transform.preset", "code of your own has none; give the other keys of [transform]")
        missing = [key for key in NEEDED_OF_TRANSFORM if key not in explicit]
        if missing:
            raise described.refusal("transform", f"code of your own needs all of it, and has no {', '.join(missing)}")
        transform = Transform(**explicit)
    else:
        architecture = architectures.find(described.architecture)
        makers = "timm" if architecture.name.startswith("timm/") else "torchvision"
        if preset not in {None, makers}:
            raise described.refusal("transform.preset", f"that of {architecture.name} is {makers!r}, not {preset!r}")
        transform = replace(architecture.transform, **explicit)
    if transform.crop > transform.resize and transform.fit != "pad":
        raise described.refusal(
            "transform.crop", f"is {transform.crop}, more than resize, {transform.resize}, leaves of an image"
        )
    return transform


def _default_labels(
    described: Description, architecture: Architecture | None, module: nn.Module, transform: Transform
) -> tuple[str, ...]:
    """Return the published labels for published weights, and numbered labels for weights of a file. Empty for a network
    without classes, or one that serves an inner layer."""
    if described.classes == 0 or described.features is not None:
        return ()
    if described.weights == "published" and architecture is not None:
        return architecture.labels
    return tuple(f"class {index}" for index in range(_classes(described, module, transform)))


def _classes(described: Description, module: nn.Module, transform: Transform) -> int:
    """Return the number of logits for an image."""
    try:
        with torch.no_grad():
            logits = module(torch.zeros(1, 3, transform.crop, transform.crop))
    except Exception as error:
        raise described.refusal("architecture", f"{described.architecture} does not run: {error}") from error
    if not isinstance(logits, torch.Tensor) or logits.ndim != 2:  # noqa: PLR2004 - (1, C)
        raise described.refusal("architecture", "must give logits, (N, C), for images, (N, 3, H, W)")
    count: int = logits.shape[1]
    return count


def read_labels(file: Path) -> tuple[str, ...]:
    """Return the names, class 0 first. A .json file is a list of names, an object of names by index, or one of indices
    by name, as torchvision's `ImageFolder.class_to_idx`. Any other file is text, one name a line. Raises
    ModelFolderError."""
    try:
        text = read_bounded(file, _MOST_BYTES_OF_LABELS).decode("utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise ModelFolderError(file, f"cannot be read as UTF-8 text: {error}") from error
    names = _of_json(file, text) if file.suffix.lower() == ".json" else _of_lines(file, text)
    if len(names) > MOST_CLASSES:
        raise ModelFolderError(file, f"has {len(names)} names; at most {MOST_CLASSES} are read")
    longest = max(names, key=len)
    if len(longest) > _LONGEST_NAME:
        raise ModelFolderError(
            file, f"has a name of {len(longest)} characters, {longest[:20]!r}…; at most {_LONGEST_NAME} are allowed"
        )
    return names


def _of_lines(file: Path, text: str) -> tuple[str, ...]:
    names = [line.strip() for line in text.rstrip().splitlines()]
    for number, name in enumerate(names, start=1):
        if not name:
            raise ModelFolderError(file, f"line {number} is empty, and would be the name of class {number - 1}")
    if not names:
        raise ModelFolderError(file, "holds no name; it should have one class a line, class 0 first")
    return tuple(names)


def _of_json(file: Path, text: str) -> tuple[str, ...]:
    try:
        held = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ModelFolderError(file, f"is not JSON: {error}") from error
    if isinstance(held, list):
        held = {str(index): name for index, name in enumerate(held)}
    elif isinstance(held, dict) and held and all(type(index) is int for index in held.values()):
        held = _inverted(file, held)
    if not isinstance(held, dict) or not held or not all(isinstance(name, str) and name for name in held.values()):
        raise ModelFolderError(
            file, 'must be a list of names, {"0": "name of class 0", …} or {"name of class 0": 0, …}, and is none'
        )
    for index in map(str, range(len(held))):
        if index not in held:
            raise ModelFolderError(file, f"has {len(held)} names and none of index {index}; indices begin at 0")
    return tuple(held[str(index)] for index in range(len(held)))


def _inverted(file: Path, indices: Mapping[str, int]) -> dict[str, str]:
    names = {str(index): name for name, index in indices.items()}
    if len(names) < len(indices):
        raise ModelFolderError(file, "two names have the same index")
    return names
