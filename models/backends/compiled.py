"""torch.compile: one graph for each of a few batch sizes, all compiled before the service is ready."""

from __future__ import annotations

import warnings
from collections.abc import Callable

import torch

from models.backends.eager import served_network
from models.backends.shapes import buckets, padded
from models.hardware import cores, cuda
from models.interface.cancellation import NEVER_CANCELLED, CancelToken
from models.loading.load import LoadedModel
from models.networks.network import FeaturesAndLogits


class CompiledBackend:
    """Batches are padded to the next bucket, a power of two or the largest batch, so that no request compiles.

    Compilation happens at a bucket's first run: warm-up runs each (`sizes_to_warm_up`).
    """

    # A hook of any kind on a compiled module would have it compiled again.
    network = None
    memory_note = None
    lanes = 1
    room_from = None

    def __init__(self, model: LoadedModel, *, max_batch_size: int, fixed_shape: bool = False) -> None:
        self._device = model.placement.device
        self._dtype = model.placement.dtype
        self._normalize = model.normalize
        self.sizes_to_warm_up = (max_batch_size,) if fixed_shape else buckets(max_batch_size)
        self.intra_op_threads = cores.available_cores()
        self._network = compiled_network(model)

    def run(self, pixels: torch.Tensor, cancel_token: CancelToken = NEVER_CANCELLED) -> FeaturesAndLogits:  # noqa: ARG002 - in one piece
        size = len(pixels)
        bucket = next(bucket for bucket in self.sizes_to_warm_up if bucket >= size)
        # Strides too are what graphs are compiled for, and those of one image can be written in several ways.
        batch = padded(pixels, bucket).contiguous(memory_format=torch.channels_last)
        images = self._normalize(cuda.to_device(batch, self._device)).to(self._dtype)
        features, logits = self._network(images)
        return FeaturesAndLogits(features[:size], logits[:size])

    def close(self) -> None:
        """It has no threads of its own."""


def compiled_network(model: LoadedModel) -> Callable[[torch.Tensor], FeaturesAndLogits]:
    """What EagerBackend would serve, compiled at the first run of a shape, for that shape."""
    options = cuda.compile_options(model.placement.device)
    # That matrices could be multiplied in TF32 as convolutions are: for whoever wrote the network, and not done here.
    warnings.filterwarnings("ignore", "TensorFloat32 tensor cores", UserWarning)
    compiled: Callable[[torch.Tensor], FeaturesAndLogits] = torch.compile(
        served_network(model), dynamic=False, fullgraph=True, **options
    )
    return compiled
