"""Owns one loaded model and its device. Enters inference_mode once per batch, in the thread that runs it: the mode is
thread-local, entered anywhere else it does nothing here. A backend that hands pieces to threads of its own enters it
there as well; nothing else on the serving path does."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from models.backends import Backend
from models.errors import WarmUpError
from models.loading import LoadedModel
from models.turns import TurnLock


class Item(NamedTuple):
    """One image for the device: (3, H, W) uint8 of the model's input size, and how many classes are wanted (0:
    features alone)."""

    image: torch.Tensor
    top_k: int


@dataclass(frozen=True, slots=True)
class Output:
    """One image's answer: features (D,) float32; the indices (top_k,) int64 and probabilities (top_k,) float32 of
    the likeliest classes, most probable first, or None where none were asked for. Views into the batch's arrays."""

    features: NDArray[np.float32]
    indices: NDArray[np.int64] | None
    probabilities: NDArray[np.float32] | None

    @property
    def finite(self) -> bool:
        """Whether all its numbers are numbers: a network can overflow, and JSON has no way to say so."""
        answers = (self.features, self.probabilities)
        return all(bool(np.isfinite(numbers).all()) for numbers in answers if numbers is not None)


class Engine:
    """Runs batches of one model. `turn` is held during every use of the model, by serving and by the lens."""

    def __init__(self, model: LoadedModel, backend: Backend) -> None:
        self.model = model
        self.turn = TurnLock()
        self._backend = backend

    def run(self, items: Sequence[Item]) -> list[Output]:
        """One forward for all `items`, answered in order."""
        top_k = max(item.top_k for item in items)
        with self.turn, torch.inference_mode():
            features, logits = self._backend.run(_stacked([item.image for item in items]))
            host_features = features.float().cpu().numpy()
            if top_k == 0:
                return [Output(row, None, None) for row in host_features]
            # Once for the batch, not once an image; in float32, whatever the network computes in.
            likeliest = logits.float().softmax(dim=1).clamp_(max=1).topk(top_k, dim=1)
            probabilities, indices = likeliest.values.cpu().numpy(), likeliest.indices.cpu().numpy()
        return [
            Output(host_features[row], indices[row, : item.top_k], probabilities[row, : item.top_k])
            for row, item in enumerate(items)
        ]

    def close(self) -> None:
        """End what threads the backend has. Nothing runs any more."""
        self._backend.close()

    def warm_up(self) -> None:
        """Run batches of the sizes that the backend wants to have run, as requests will.

        Raises WarmUpError, also for a model that is not in eval mode or whose outputs are not finite numbers.
        """
        model = self.model
        if any(module.training for module in model.network.modules()):
            raise WarmUpError(model.name, "it is not in eval mode")
        side = model.transform.crop
        blank = Item(torch.zeros(3, side, side, dtype=torch.uint8), top_k=1)
        try:
            outputs = [output for size in self._backend.sizes_to_warm_up for output in self.run([blank] * size)]
        except Exception as error:
            raise WarmUpError(model.name, f"{type(error).__name__}: {error}") from error
        if not all(output.finite for output in outputs):
            raise WarmUpError(model.name, "its outputs are not finite numbers")


def _stacked(images: list[torch.Tensor]) -> torch.Tensor:
    """(3, H, W) tensors, channels last in memory, as one (N, 3, H, W) tensor of the same kind."""
    return torch.stack([image.permute(1, 2, 0) for image in images]).permute(0, 3, 1, 2)
