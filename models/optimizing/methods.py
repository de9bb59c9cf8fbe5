"""Find the model to optimize, in the catalog or in a folder, and write a new model folder with each of the methods."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import torch
from torch import nn

from models.images.preprocessing import Normalize
from models.interface.errors import JobError, UnsupportedArchitectureError
from models.interface.model_sources import ServedAs
from models.loading import catalog
from models.loading.calibration import MOST_IMAGES, Calibration
from models.loading.load import WEIGHTS_SUFFIX, LoadedModel
from models.model_folder import building, description, own_code, sizes
from models.model_folder.writing import write
from models.networks import architectures
from models.networks.specs import Classifier, ModelSpec
from models.offline import files
from models.offline.reading import Reading

Method = Literal["prune", "int8", "bf16"]

# More images take longer and do not change the ranking of channels.
_MOST_TO_PRUNE_BY = 256
_BATCH = 64

# One image gives no variance to a BatchNorm over maps of one position.
_LEAST_TO_PRUNE_BY = 2

_QUANTIZED = "int8.xml"


@dataclass(frozen=True, slots=True)
class Source:
    """`architecture` is the name for model.toml. `build` makes the network before any pruning, given the number of
    classes. `code` is the folder of the user's own Python code that builds it, or None."""

    spec: ModelSpec
    architecture: str
    build: Callable[[int | None], nn.Module]
    code: Path | None

    def classifier(self) -> Classifier:
        """Return a new copy on the CPU in float32. Raises StartError, also for a model without classes."""
        made = self.spec.build()
        if not made.labels or made.features is not None:
            raise JobError(f"{self.spec.name} returns features alone; only models with classes can be optimized")
        return made


def find_source(name: str) -> Source:
    """Return the model called `name` in the catalog, or in the folder `name`.

    Raises StartError, also for a model that cannot be optimized.
    """
    spec = catalog.find(name)
    if spec.served_as.quantized is not None:
        raise JobError(f"{spec.name} is already in int8; optimize the model that it was made from")
    if spec.folder is not None:
        described = description.read(spec.folder)
        own = own_code.is_own(described.architecture) and own_code.digest(described) is not None
        return Source(spec, described.architecture, building.unpruned(described), described.folder if own else None)
    # The embedded model has an architecture of timm, with weights from another source.
    for known in (spec.architecture, f"timm/{spec.architecture}"):
        if architectures.exists(known):
            return Source(spec, known, architectures.find(known).build, None)
    raise JobError(f"{spec.name} has no architecture that a model folder could name")


def prune(source: Source, folder: Path, name: str, *, ratio: float, images: Sequence[str], reading: Reading) -> int:
    """Write the network with `ratio` of its channels removed, ranked on some of `images`.

    Return the number of images used. Raises StartError.
    """
    from models.optimizing.pruning import prune as prune_in_place  # noqa: PLC0415 - an extra

    classifier = source.classifier()
    found = [reading.pixels(path) for path in files.spread(images, _MOST_TO_PRUNE_BY)]
    pixels = [image for image in found if isinstance(image, torch.Tensor)]
    if len(pixels) < _LEAST_TO_PRUNE_BY:
        raise JobError(f"pruning ranks channels on images, and only {len(pixels)} could be read; give some hundred")
    normalized = Normalize(classifier.transform)(torch.stack(pixels))
    # Batches of nearly equal size.
    batches = normalized.tensor_split(-(-len(normalized) // _BATCH))
    module = classifier.module
    prune_in_place(source.spec.name, module, batches, ratio=ratio, classes=len(classifier.labels))
    _write(source, classifier, folder, name, source.spec.served_as)
    _check_rebuilt(source, building.find(folder).build().module, module, batches[0])
    return len(pixels)


def bf16(source: Source, folder: Path, name: str) -> None:
    """Write the weights in bfloat16, in which the model is then served. Raises StartError."""
    classifier = source.classifier()
    # Not the buffers: BatchNorm statistics are small, and are folded into the weights before rounding.
    for parameter in classifier.module.parameters():
        parameter.data = parameter.data.to(torch.bfloat16)
    _write(source, classifier, folder, name, replace(source.spec.served_as, precision="bf16"))


def int8(source: Source, loaded: LoadedModel, folder: Path, name: str, *, images: Sequence[str]) -> int:
    """Write the network in int8, with ranges from some of `images`, and its float weights, which the lens uses.

    `loaded` is the source on a CPU. Return the number of images used. Raises StartError, OSError.
    """
    from models.backends.openvino_conversion import quantize  # noqa: PLC0415 - an extra

    calibration = Calibration.of_files([Path(file) for file in files.spread(images, MOST_IMAGES)])
    quantize(loaded, calibration, folder / _QUANTIZED)
    served_as = replace(source.spec.served_as, precision="int8", quantized=folder / _QUANTIZED)
    _write(source, source.classifier(), folder, name, served_as)
    return len(calibration.files)


def weight_bytes(spec: ModelSpec, model: LoadedModel) -> int:
    """Return the size of the weights that `model` is served from: of its file, else of the loaded tensors."""
    if model.quantized is not None:
        return model.quantized.with_suffix(WEIGHTS_SUFFIX).stat().st_size
    weights = None if spec.folder is None else description.read(spec.folder).weights
    return weights.stat().st_size if isinstance(weights, Path) else model.weight_bytes


def _write(source: Source, classifier: Classifier, folder: Path, name: str, served_as: ServedAs) -> None:
    module = classifier.module
    try:
        pruned = sizes.differing(module, source.build(len(classifier.labels)))
    except ValueError as error:
        raise UnsupportedArchitectureError(source.spec.name, str(error)) from error
    if source.code is not None:
        for file in own_code.sources(source.code):
            copy = folder / file.relative_to(source.code)
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file, copy)
    write(folder, classifier, name=name, architecture=source.architecture, pruned=pruned, served_as=served_as)


def _check_rebuilt(source: Source, rebuilt: nn.Module, pruned: nn.Module, images: torch.Tensor) -> None:
    """Check that the folder rebuilds the pruned network: code may depend on a layer's original size.

    Raises UnsupportedArchitectureError.
    """
    with torch.no_grad():
        if not torch.equal(rebuilt(images), pruned(images)):
            raise UnsupportedArchitectureError(
                source.spec.name, "rebuilt from its sizes and weights, the pruned network gives different outputs"
            )
