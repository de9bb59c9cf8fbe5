"""torch.compile: one graph for each of a few batch sizes, all compiled before the service is ready."""

from __future__ import annotations

import warnings
from collections.abc import Callable

import torch

from models.backends.backend import Backend, BackendOptions, BatchHints
from models.backends.batch_shapes import buckets, default_max_batch_size, padded
from models.backends.eager import served_network
from models.hardware import cores, cuda
from models.interface.cancellation import NEVER_CANCELLED, CancelToken
from models.loading.load import LoadedModel
from models.networks.network import FeaturesAndLogits


class CompiledBackend(Backend):
    """Pads each batch to the next bucket, a power of two or the largest batch, so that no request compiles.

    Compilation happens at a bucket's first run: the warm-up runs each of them.
    """

    # Any hook on a compiled module would cause another compilation.
    network = None

    def __init__(self, model: LoadedModel, options: BackendOptions) -> None:
        self._device = model.placement.device
        self._dtype = model.placement.dtype
        self._normalize = model.normalize
        max_batch_size = options.max_batch_size or default_max_batch_size(self._device)
        self._buckets = (max_batch_size,) if options.fixed_shape else buckets(max_batch_size)
        self.hints = BatchHints(
            max_batch_size=max_batch_size,
            warm_up_sizes=self._buckets,
            intra_op_threads=cores.available_cores(),
        )
        self._network = compiled_network(model)

    def run(self, pixels: torch.Tensor, cancel_token: CancelToken = NEVER_CANCELLED) -> FeaturesAndLogits:  # noqa: ARG002 - in one piece
        size = len(pixels)
        bucket = next(bucket for bucket in self._buckets if bucket >= size)
        # Graphs are compiled for strides too, and one image can have its strides written in several ways.
        batch = padded(pixels, bucket).contiguous(memory_format=torch.channels_last)
        images = self._normalize(cuda.to_device(batch, self._device)).to(self._dtype)
        features, logits = self._network(images)
        return FeaturesAndLogits(features[:size], logits[:size])

    def close(self) -> None:
        """Do nothing: this backend has no threads."""


def compiled_network(model: LoadedModel) -> Callable[[torch.Tensor], FeaturesAndLogits]:
    """Return the network that EagerBackend serves, compiled for each shape at its first run."""
    options = cuda.compile_options(model.placement.device)
    # PyTorch suggests TF32 for matrix products, which would change the results of the network.
    warnings.filterwarnings("ignore", "TensorFloat32 tensor cores", UserWarning)
    compiled: Callable[[torch.Tensor], FeaturesAndLogits] = torch.compile(
        served_network(model), dynamic=False, fullgraph=True, **options
    )
    return compiled
