"""Next to nothing, in place of a forward: what is left is the server itself, as a very fast device would see it."""

from __future__ import annotations

import copy

import torch

from models.hardware import cuda
from models.interface.cancellation import NEVER_CANCELLED, CancelToken
from models.loading.load import LoadedModel
from models.networks.network import FeaturesAndLogits


class NullBackend:
    """The catalog's `null` model on one pixel of each image: the batch is stacked and moved, the rest left out."""

    intra_op_threads = 1
    memory_note = None
    lanes = 1
    room_from = None
    sizes_to_warm_up = (1,)

    def __init__(self, model: LoadedModel) -> None:
        self._device = model.placement.device
        self._dtype = model.placement.dtype
        self._normalize = model.normalize
        self.network = copy.deepcopy(model.network).to(self._dtype)

    def run(self, pixels: torch.Tensor, cancel_token: CancelToken = NEVER_CANCELLED) -> FeaturesAndLogits:  # noqa: ARG002 - in one piece
        corners = cuda.to_device(pixels, self._device)[:, :, :1, :1]
        answer: FeaturesAndLogits = self.network(self._normalize(corners).to(self._dtype))
        return answer

    def close(self) -> None:
        """It has no threads of its own."""
