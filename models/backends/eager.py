"""PyTorch as it is: the network with its BatchNorms folded, channels last in memory."""

from __future__ import annotations

import torch

from models import devices
from models.backends.folding import folded
from models.loading import LoadedModel
from models.network import FeaturesAndLogits, Network


class EagerBackend:
    """Runs a served copy of the network; the loaded one stays as it is, for the lens.

    On the CPU a batch goes in pieces: beyond some 16 images the activations outgrow what the allocator keeps, and
    the forward is bound by page faults.
    """

    def __init__(self, model: LoadedModel, *, max_batch_size: int) -> None:
        self.sizes_to_warm_up = (1, max_batch_size)
        self._device = model.placement.device
        self._dtype = model.placement.dtype
        self._normalize = model.normalize
        self._network = served_network(model)
        self._piece = devices.largest_eager_batch(self._device)

    def run(self, pixels: torch.Tensor) -> FeaturesAndLogits:
        pieces = [self._forward(piece) for piece in torch.split(pixels, self._piece or len(pixels))]
        if len(pieces) == 1:
            return pieces[0]
        return FeaturesAndLogits(*(torch.cat(outputs) for outputs in zip(*pieces, strict=True)))

    def _forward(self, pixels: torch.Tensor) -> FeaturesAndLogits:
        images = self._normalize(devices.to_device(pixels, self._device))
        answer: FeaturesAndLogits = self._network(images.to(self._dtype))
        return answer


def served_network(model: LoadedModel) -> Network:
    """A copy of the network for serving: folded, then brought to the served precision, channels last."""
    side = model.transform.crop
    example = torch.rand(2, 3, side, side, device=model.placement.device)
    network = folded(model.network, example).to(model.placement.dtype)
    return network.to(memory_format=torch.channels_last).eval()
