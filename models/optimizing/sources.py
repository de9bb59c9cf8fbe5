"""Find the model to optimize, in the catalog or in a folder, and what a new folder of it needs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from torch import nn

from models.interface.errors import JobError
from models.loading import catalog
from models.model_folder import building, description, own_code
from models.networks import architectures
from models.networks.specs import Classifier, ModelSpec


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


def find(name: str) -> Source:
    """Return the model called `name` in the catalog, or in the folder `name`.

    Raises StartError, also for a model that cannot be optimized.
    """
    spec = catalog.find(name)
    if spec.served_as is not None and spec.served_as.quantized is not None:
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
