"""PyTorch as it is: the network with its BatchNorms folded, channels last in memory."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from functools import partial

import torch

from models.backends import batch_shapes
from models.backends.batch_shapes import Split
from models.backends.folding import folded
from models.backends.shapes import next_multiple, padded
from models.hardware import cores, cuda
from models.interface.cancellation import NEVER_CANCELLED, CancelToken
from models.loading.load import LoadedModel
from models.networks.network import FeaturesAndLogits, Network


class EagerBackend:
    """Runs a served copy of the network; the loaded one stays as it is, for the lens.

    On the CPU a batch is cut into pieces (models/backends/batch_shapes.py says why). For a light network, threads of
    the backend run the pieces concurrently; each of them enters inference_mode, which is thread-local.
    """

    def __init__(self, model: LoadedModel, *, max_batch_size: int, fixed_shape: bool = False) -> None:
        self._fixed_shape = fixed_shape
        self.sizes_to_warm_up = (1, max_batch_size)
        self._device = model.placement.device
        self._dtype = model.placement.dtype
        self._normalize = model.normalize
        self.network = served_network(model)
        self._split = batch_shapes.eager_split(self._device, model.weight_bytes) or Split(max_batch_size, workers=1)
        self.intra_op_threads = cores.available_cores() if self._split.workers == 1 else 1
        # The workers come to the second batch's pieces when they have done the first's.
        self.lanes = 2 if self._split.workers > 1 else 1
        # An image alone has one of the workers, too.
        self.room_from = 1 if self._split.workers > 1 else None
        self.memory_note = (
            "its forward runs in several threads, and the profiler sees one" if self._split.workers > 1 else None
        )
        self._workers = ThreadPoolExecutor(
            self._split.workers, "forward", initializer=cores.use_one_core_in_this_thread
        )

    def run(self, pixels: torch.Tensor, cancel_token: CancelToken = NEVER_CANCELLED) -> FeaturesAndLogits:
        size, count = self._split.piece, len(pixels)
        if self._fixed_shape:
            pixels = padded(pixels, next_multiple(count, size))
        elif self._split.workers > 1:
            # At least as many pieces as workers, as far as there are images: none of them idles.
            size = min(size, -(-count // self._split.workers))
        pieces = torch.split(pixels, size)
        if self._split.workers == 1:
            return _joined([self._forward(piece, cancel_token) for piece in pieces], count)
        return _joined(
            list(self._workers.map(partial(self._forward_in_worker, cancel_token=cancel_token), pieces)), count
        )

    def close(self) -> None:
        self._workers.shutdown()

    def _forward_in_worker(self, pixels: torch.Tensor, cancel_token: CancelToken) -> FeaturesAndLogits:
        with torch.inference_mode():
            return self._forward(pixels, cancel_token)

    def _forward(self, pixels: torch.Tensor, cancel_token: CancelToken) -> FeaturesAndLogits:
        cancel_token.raise_if_cancelled()
        images = self._normalize(cuda.to_device(pixels, self._device))
        answer: FeaturesAndLogits = self.network(images.to(self._dtype))
        return answer


def served_network(model: LoadedModel) -> Network:
    """A copy of the network for serving: folded, then brought to the served precision, channels last."""
    side = model.transform.crop
    network = folded(model.network, torch.rand(2, 3, side, side))
    network = network.to(model.placement.device, model.placement.dtype)
    return network.to(memory_format=torch.channels_last).eval()


def _joined(pieces: list[FeaturesAndLogits], count: int) -> FeaturesAndLogits:
    """The outputs of the first `count` images."""
    if len(pieces) == 1:
        return FeaturesAndLogits(*(output[:count] for output in pieces[0]))
    return FeaturesAndLogits(*(torch.cat(outputs)[:count] for outputs in zip(*pieces, strict=True)))
