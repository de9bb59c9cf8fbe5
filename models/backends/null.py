"""Next to nothing in place of a forward, to test and measure the server itself."""

from __future__ import annotations

import copy

import torch

from models.backends.backend import Backend, BackendOptions, BatchHints
from models.backends.batch_shapes import default_max_batch_size
from models.hardware import cuda
from models.interface.cancellation import NEVER_CANCELLED, CancelToken
from models.loading.load import LoadedModel
from models.networks.network import FeaturesAndLogits


class NullBackend(Backend):
    """Runs the catalog's `null` model on one pixel of each image, after the batch was moved to the device."""

    def __init__(self, model: LoadedModel, options: BackendOptions) -> None:
        self.hints = BatchHints(
            max_batch_size=options.max_batch_size or default_max_batch_size(model.placement.device), warm_up_sizes=(1,)
        )
        self._device = model.placement.device
        self._dtype = model.placement.dtype
        self._normalize = model.normalize
        self.network = copy.deepcopy(model.network).to(self._dtype)

    def run(self, pixels: torch.Tensor, cancel_token: CancelToken = NEVER_CANCELLED) -> FeaturesAndLogits:  # noqa: ARG002 - in one piece
        corners = cuda.to_device(pixels, self._device)[:, :, :1, :1]
        answer: FeaturesAndLogits = self.network(self._normalize(corners).to(self._dtype))
        return answer

    def close(self) -> None:
        """Do nothing: this backend has no threads."""
