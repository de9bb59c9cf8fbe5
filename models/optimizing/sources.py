"""What is to be optimized: a model of the catalog or of a folder, and what a new folder of it needs."""

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
    """`architecture` as a model.toml names it, and `build`, which makes it as it is before anything is pruned. `code`:
    the folder whose Python files it is built from, where it is code of the user's own."""

    spec: ModelSpec
    architecture: str
    build: Callable[[int | None], nn.Module]
    code: Path | None

    def classifier(self) -> Classifier:
        """A copy to change, on the CPU, in float32. Raises StartError, also where there are no classes to compare."""
        made = self.spec.build()
        if not made.labels or made.features is not None:
            raise JobError(f"{self.spec.name} serves features alone, and what is optimized is compared by its classes")
        return made


def find(name: str) -> Source:
    """The model of that name of the catalog, or in that folder. Raises StartError, also for what cannot be
    optimized."""
    spec = catalog.find(name)
    if spec.served_as is not None and spec.served_as.quantized is not None:
        raise JobError(f"{spec.name} is in int8 already; optimize the model that it was made from")
    if spec.folder is not None:
        described = description.read(spec.folder)
        own = own_code.is_own(described.architecture) and own_code.digest(described) is not None
        return Source(spec, described.architecture, building.unpruned(described), described.folder if own else None)
    # The embedded model is one of timm's, with weights from elsewhere.
    for known in (spec.architecture, f"timm/{spec.architecture}"):
        if architectures.exists(known):
            return Source(spec, known, architectures.find(known).build, None)
    raise JobError(f"{spec.name} has no architecture that a model folder could name")
