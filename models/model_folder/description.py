"""Read model.toml. Needs no torch."""

from __future__ import annotations

import os
import re
import stat
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal, get_args

from models.interface.errors import ModelFolderError
from models.interface.model_sources import FeatureForm, Fit, Interpolation, Precision, ServedAs
from models.model_folder.keys import Keys

FILE_NAME = "model.toml"

MIB = 2**20

Preset = Literal["torchvision", "timm"]
# Values of `weights` that name no file.
WithoutFile = Literal["published", "random"]
PRESETS: tuple[Preset, ...] = get_args(Preset)
FEATURE_FORMS: tuple[FeatureForm, ...] = get_args(FeatureForm)
FITS: tuple[Fit, ...] = get_args(Fit)
INTERPOLATIONS: tuple[Interpolation, ...] = get_args(Interpolation)
PRECISIONS: tuple[Precision, ...] = get_args(Precision)
WITHOUT_FILE: tuple[WithoutFile, ...] = get_args(WithoutFile)

# Keys of [transform] that a network of the user's own needs.
NEEDED_OF_TRANSFORM = ("resize", "crop", "interpolation", "mean", "std")
TRANSFORM_KEYS = ("preset", *NEEDED_OF_TRANSFORM, "fit", "exact_jpeg")

# Names are part of URLs, metric labels and comma-separated lists.
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")

# Enough for the names of 30,000 classes in the file itself.
_MOST_BYTES = MIB

_LARGEST_SIDE = 4096
# As of GRADLESS_MAX_BATCH_SIZE.
_LARGEST_BATCH = 1024
MOST_CLASSES = 1_000_000
_TOLERANCE = 0.05


@dataclass(frozen=True, slots=True)
class TransformKeys:
    """The [transform] table. `explicit`: the given fields of models.images.preprocessing.Transform, which override the
    published transform. `preset`: the publisher of that transform."""

    preset: Preset | None
    explicit: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Reference:
    """An image whose class is known. The probability of the label, if given, may differ by `tolerance`."""

    image: Path
    label: str
    probability: float | None
    tolerance: float


@dataclass(frozen=True, slots=True)
class Description:
    """A model folder as its model.toml describes it. `pruned`: file of layer sizes that differ from the architecture's.
    `labels`: a file, or the labels themselves. `classes` 0: the output of the network is features. All files exist, but
    have not been read."""

    folder: Path
    name: str
    architecture: str
    weights: Path | WithoutFile
    pruned: Path | None
    labels: Path | tuple[str, ...] | None
    classes: int | None
    features: str | None
    feature_form: FeatureForm
    transform: TransformKeys
    serve: ServedAs
    reference: Reference | None

    @property
    def file(self) -> Path:
        return self.folder / FILE_NAME

    def refusal(self, key: str, reason: str) -> ModelFolderError:
        return ModelFolderError(self.file, reason, key)


# Keys of the file, and of its tables besides [transform]: the fields above.
KEYS = tuple(field.name for field in fields(Description) if field.name != "folder")
SERVE_KEYS = tuple(field.name for field in fields(ServedAs))
REFERENCE_KEYS = tuple(field.name for field in fields(Reference))


def is_name(text: str) -> bool:
    return _NAME.fullmatch(text) is not None


def read(folder: Path) -> Description:
    """Read the model.toml in `folder`. Raises ModelFolderError."""
    file = folder / FILE_NAME
    keys = Keys.of(file, "", _parsed(file), KEYS)
    transform = keys.subtable("transform", TRANSFORM_KEYS)
    serve = keys.subtable("serve", SERVE_KEYS)
    reference = keys.subtable("reference", REFERENCE_KEYS)
    form = keys.one_of("feature_form", FEATURE_FORMS)
    if form is not None and keys.text("features") is None:
        raise keys.refusal("feature_form", 'goes with features, say features = "layer3"')
    if reference is not None and keys.text("features") is not None:
        raise keys.refusal("reference", "has a label, and with features there are no classes")
    return Description(
        folder=folder,
        name=_name(keys),
        architecture=keys.needed_text(
            "architecture", "a name of torchvision's, timm/NAME, or module:callable of your own"
        ),
        weights=_weights(keys),
        pruned=_pruned(keys),
        labels=_labels(keys),
        classes=keys.whole_number("classes", 0, MOST_CLASSES),
        features=keys.text("features"),
        feature_form=form or "pooled",
        transform=TransformKeys(None, {}) if transform is None else _transform(transform),
        serve=ServedAs() if serve is None else _serve(serve),
        reference=None if reference is None else _reference(reference),
    )


def _parsed(file: Path) -> dict[str, object]:
    folder = file.parent
    try:
        return tomllib.loads(read_bounded(file, _MOST_BYTES).decode())
    except FileNotFoundError:
        if not folder.is_dir():
            raise ModelFolderError(folder, "there is no such folder") from None
        raise ModelFolderError(folder, f"there is no {FILE_NAME}; `gradless models init {folder}` writes one") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ModelFolderError(file, f"is not TOML: {error}") from error


def _name(keys: Keys) -> str:
    given = keys.text("name")
    # Not the target of a link: versions behind one link are versions of one model.
    name = given or Path(os.path.abspath(keys.path.parent)).name  # noqa: PTH100 - resolve() would follow links
    if not is_name(name):
        what = f"not {name!r}" if given else f"and the folder's, {name!r}, is none: set it"
        raise keys.refusal("name", f"must be letters, digits, '.', '_' and '-', at most 100, {what}")
    return name


def _weights(keys: Keys) -> Path | WithoutFile:
    text = keys.needed_text("weights", 'a file in the folder, or "published" for those of the architecture\'s makers')
    word = next((word for word in WITHOUT_FILE if word == text), None)
    return keys.file_inside("weights", text) if word is None else word


def _pruned(keys: Keys) -> Path | None:
    if keys.text("pruned") is not None and keys.text("weights") in WITHOUT_FILE:
        raise keys.refusal("pruned", "goes with a file of weights, which have the sizes that it gives to layers")
    return keys.file("pruned")


def _labels(keys: Keys) -> Path | tuple[str, ...] | None:
    return keys.texts("labels") if isinstance(keys.values.get("labels"), list) else keys.file("labels")


def _transform(keys: Keys) -> TransformKeys:
    preset = keys.one_of("preset", PRESETS)
    explicit = {
        "resize": keys.whole_number("resize", 1, _LARGEST_SIDE),
        "crop": keys.whole_number("crop", 1, _LARGEST_SIDE),
        "interpolation": keys.one_of("interpolation", INTERPOLATIONS),
        "mean": keys.per_channel("mean"),
        "std": keys.per_channel("std", positive=True),
        "fit": keys.one_of("fit", FITS),
        "exact_jpeg": keys.flag("exact_jpeg"),
    }
    return TransformKeys(preset, {key: value for key, value in explicit.items() if value is not None})


def _serve(keys: Keys) -> ServedAs:
    precision = keys.one_of("precision", PRECISIONS)
    text = keys.text("quantized")
    if (precision == "int8") != (text is not None):
        raise keys.refusal("quantized", "goes with precision int8, and int8 with it; `gradless optimize` writes both")
    quantized = keys.file("quantized")
    if text is not None:
        keys.file_inside("quantized", str(Path(text).with_suffix(".bin")))
    return ServedAs(precision, quantized, keys.whole_number("max_batch_size", 1, _LARGEST_BATCH))


def _reference(keys: Keys) -> Reference:
    image = keys.needed_text("image", "a picture in the folder")
    tolerance, probability = keys.number("tolerance", 0, 1), keys.number("probability", 0, 1)
    if tolerance is not None and probability is None:
        raise keys.refusal("tolerance", "goes with probability, which it is about")
    return Reference(
        image=keys.file_inside("image", image),
        label=keys.needed_text("label", "the class that the picture shows"),
        probability=probability,
        tolerance=_TOLERANCE if tolerance is None else tolerance,
    )


def read_bounded(file: Path, most_bytes: int) -> bytes:
    """Return the content of a small file of a model folder.

    Raises FileNotFoundError, and ModelFolderError if the file has more than `most_bytes`, cannot be read, or is a pipe
    or a device: such files would take memory or time from the models that are served.
    """
    try:
        # Opening a pipe would block until another process writes to it.
        if not stat.S_ISREG(file.stat().st_mode):
            raise ModelFolderError(file, "is not a regular file")
        with file.open("rb") as stream:
            content = stream.read(most_bytes + 1)
    except FileNotFoundError:
        raise
    except OSError as error:
        raise ModelFolderError(file, f"cannot be read: {error.strerror}") from error
    if len(content) > most_bytes:
        raise ModelFolderError(file, f"is larger than {most_bytes // MIB} MiB, the most that is read of such a file")
    return content
