"""Write model folders: a classifier with all its files, or a first model.toml for the files of a folder."""

from __future__ import annotations

import json
from collections.abc import Container, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import tomlkit
from safetensors.torch import save

from models.images.preprocessing import Transform
from models.interface.errors import ModelFolderError
from models.interface.model_sources import ServedAs
from models.model_folder import building, checkpoint, own_code
from models.model_folder.description import FILE_NAME
from models.model_folder.fitting import Tensors, classes_of, guess
from models.model_folder.sizes import SizesByLayer
from models.networks import architectures
from models.networks.specs import Classifier

_WEIGHTS, _LABELS, _PRUNED = "weights.safetensors", "labels.json", "pruned.json"

# Usual files with the names of classes; the first that exists is used.
_USUAL_LABELS = tuple(
    f"{name}{ending}"
    for name in ("labels", "classes", "class_names", "categories", "class_to_idx", "index_to_name")
    for ending in (".txt", ".json")
)

# The transform of most training scripts, used for a network of the user's own.
_USUAL = Transform(256, 224, "bilinear", (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


def write(
    folder: Path,
    classifier: Classifier,
    *,
    name: str,
    architecture: str,
    pruned: SizesByLayer | None = None,
    served_as: ServedAs = ServedAs(),
) -> None:
    """Write `classifier` as a model folder: its weights in their own types, its labels, and a model.toml with its whole
    transform. Files of `served_as` are in the folder already.

    The network of `architecture` must fit the weights, apart from the sizes of the layers in `pruned`. model.toml is
    written last, so that a partly written folder is no model folder. Raises ModelFolderError if there is one already,
    or it cannot be written.
    """
    if (folder / FILE_NAME).exists():
        raise ModelFolderError(folder / FILE_NAME, "is there already, and is not overwritten")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        # Copies, because safetensors refuses tensors that share memory.
        state = {
            key: tensor.detach().cpu().contiguous().clone() for key, tensor in classifier.module.state_dict().items()
        }
        # Not save_file, whose files only their owner can read.
        (folder / _WEIGHTS).write_bytes(save(state))
        described: dict[str, object] = {"name": name, "architecture": architecture, "weights": _WEIGHTS}
        if pruned:
            (folder / _PRUNED).write_text(json.dumps(pruned, indent=0) + "\n", encoding="utf-8")
            described["pruned"] = _PRUNED
        if classifier.labels:
            text = json.dumps(classifier.labels, ensure_ascii=False, indent=0)
            (folder / _LABELS).write_text(f"{text}\n", encoding="utf-8")
        described |= _output_keys(classifier)
        serve = {key: value for key, value in asdict(served_as).items() if value is not None}
        if served_as.quantized is not None:
            serve["quantized"] = str(served_as.quantized.relative_to(folder))
        if serve:
            described["serve"] = serve
        (folder / FILE_NAME).write_text(tomlkit.dumps(described), encoding="utf-8")
    except OSError as error:
        raise ModelFolderError(folder, f"cannot be written: {error}") from error


def _output_keys(classifier: Classifier) -> dict[str, object]:
    described: dict[str, object] = {"labels": _LABELS} if classifier.labels else {}
    if classifier.features is not None:
        described |= {"features": classifier.features.node, "feature_form": classifier.features.form}
    elif not classifier.labels:
        described["classes"] = 0
    return {**described, "transform": asdict(classifier.transform)}


@dataclass(frozen=True, slots=True)
class Started:
    """A new model.toml. `classes`: number of classes of the weights, None if ambiguous. `guessed`: whether the
    architecture was found by the tensors. `transform`: what it has, or leaves to the architecture."""

    file: Path
    architecture: str
    guessed: bool
    weights: str
    labels: str | None
    classes: int | None
    transform: Transform


def start(
    folder: Path,
    *,
    architecture: str | None = None,
    weights: str | None = None,
    resize: int | None = None,
    crop: int | None = None,
) -> Started:
    """Write a model.toml with comments into `folder`, to be corrected by the person who trained the model.

    `architecture` None: the one that the weights fit, which takes seconds to find, and a minute if it is timm's.
    `weights` None: the only checkpoint there is. `resize`, `crop` None: as the architecture's makers have them. Raises
    ModelFolderError if there is a model.toml already, or what is needed cannot be found out.
    """
    file = folder / FILE_NAME
    if not folder.is_dir():
        raise ModelFolderError(folder, "there is no such folder")
    if file.exists():
        raise ModelFolderError(file, "is there already, and is not overwritten")
    chosen = _checkpoint(folder, weights)
    tensors = checkpoint.read(chosen)
    named = architecture or _guessed(chosen, tensors)
    if not own_code.is_own(named) and (reason := building.unknown(named)) is not None:
        raise ModelFolderError(folder, reason)
    labels = next((name for name in _USUAL_LABELS if (folder / name).is_file()), None)
    classes = None if own_code.is_own(named) else classes_of(tensors, architectures.find(named).build)
    usual = _USUAL if own_code.is_own(named) else architectures.find(named).transform
    transform = replace(usual, resize=resize or usual.resize, crop=crop or usual.crop)
    started = Started(file, named, architecture is None, chosen.name, labels, classes, transform)
    try:
        chosen_keys = {key for key, side in (("resize", resize), ("crop", crop)) if side is not None}
        file.write_text(_document(started, chosen_keys), encoding="utf-8")
    except OSError as error:
        raise ModelFolderError(file, f"cannot be written: {error.strerror}") from error
    return started


def _checkpoint(folder: Path, name: str | None) -> Path:
    if name is not None:
        if not (folder / name).is_file():
            raise ModelFolderError(folder, f"there is no {name} in it")
        return folder / name
    files = sorted(path for path in folder.iterdir() if path.suffix in checkpoint.SUFFIXES and path.is_file())
    if not files:
        endings = ", ".join(checkpoint.SUFFIXES)
        raise ModelFolderError(folder, f"there is no checkpoint in it, no file that ends in {endings}")
    if len(files) > 1:
        names = ", ".join(path.name for path in files)
        raise ModelFolderError(folder, f"there are several checkpoints in it, {names}: choose by --weights")
    return files[0]


def _guessed(file: Path, tensors: Tensors) -> str:
    found = guess(tensors)
    if found is not None and found.exact:
        return found.architecture
    nearest = f"; {found.architecture} is nearest, with {found.share:.0%} of the tensors" if found is not None else ""
    advice = "say which it is, or name code of yours, by --architecture"
    raise ModelFolderError(file, f"fits no architecture of torchvision or timm{nearest}; {advice}")


def _document(started: Started, chosen: Container[str]) -> str:
    folder, guessed = started.file.parent.name, "; found by its tensors" if started.guessed else ""
    lines = (
        f"# The model in this folder. `gradless models check {folder}` tries it as it will be served.",
        "",
        f"# A name of torchvision's, timm/NAME, or module:callable of code in this folder{guessed}.",
        _pair("architecture", started.architecture),
        "# A file of tensors by name. safetensors are safest; nothing is unpickled that could be code.",
        _pair("weights", started.weights),
        "# Names of the classes, class 0 first: text with one a line, JSON, or a list right here.",
        '# labels = "labels.txt"' if started.labels is None else _pair("labels", started.labels),
        *([] if started.classes is None else [_pair("classes", started.classes)]),
        "# An inner layer to serve in place of classes, pooled or as a map; what comes after is cut off.",
        '# features = "layer3"',
        '# feature_form = "pooled"',
        "",
        "[transform]",
        "# Must be what validation did when the model was trained.",
        *_transform_lines(started, chosen),
        "",
        "# A picture whose answer is known, for `gradless models check`.",
        "# [reference]",
        '# image = "picture.jpg"',
        '# label = "its class"',
        "# probability = 0.9",
        "# tolerance = 0.05",
        "",
    )
    return "\n".join(lines)


def _transform_lines(started: Started, chosen: Container[str]) -> Iterator[str]:
    """Yield chosen keys as they are, and those of the architecture as comments."""
    own = own_code.is_own(started.architecture)
    if own:
        yield "# These are only what most training scripts do."
    else:
        yield "# A key that is commented out is as the architecture's makers have it, as here."
    for key, value in asdict(started.transform).items():
        yield ("" if own or key in chosen else "# ") + _pair(key, value)


def _pair(key: str, value: object) -> str:
    return f"{key} = {tomlkit.item(value).as_string()}"
