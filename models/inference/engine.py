"""The engine: one loaded model on its device.

It enters inference_mode once per batch, in the thread that runs the batch: the mode is thread-local. A backend with
threads of its own enters it there as well. Nothing else on the serving path does.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import nn

from models.backends import Backend, BatchHints
from models.hardware import cores, cuda
from models.inference import backend_agreement
from models.inference.image_job import BatchItem, ItemOutput
from models.interface.errors import WarmUpError
from models.interface.request import NEVER_CANCELLED, AllCancelled, CancelToken, InferenceRequest
from models.loading.load import LoadedModel
from models.networks.network import FeaturesAndLogits
from models.scheduling.fairness import FairLock


class Engine:
    """Runs batches of one model. Every use of the model holds `lock`: batches share it, the lens has it exclusively."""

    def __init__(self, model: LoadedModel, backend: Backend) -> None:
        self.model = model
        self.lock = FairLock()
        self._backend = backend
        self._reference: FeaturesAndLogits | None = None

    @property
    def hints(self) -> BatchHints:
        """How the backend prefers its batches."""
        return self._backend.hints

    @property
    def max_batch_size(self) -> int:
        """Images of one batch at most."""
        return self.hints.max_batch_size

    @property
    def served_network(self) -> nn.Module | None:
        """The module that the backend runs; None if it runs no PyTorch module. Read it with the lock held."""
        return self._backend.network

    @property
    def memory_note(self) -> str | None:
        """Why PyTorch cannot measure the memory of a forward; None if it can."""
        return self.hints.memory_note

    def run(self, items: Sequence[BatchItem]) -> list[ItemOutput]:
        """Run one forward and return one output per item, in order. Raises AllCancelledError if all items were
        cancelled and the backend runs the batch in pieces."""
        top_k = max(item.request.top_k for item in items)
        with self.lock.shared(), torch.inference_mode():
            pixels = _stacked([item.image for item in items], self.model.placement.device)
            features, logits = self.forward(pixels, AllCancelled([item.request.cancel_token for item in items]))
            likeliest = None
            if top_k:
                # Once for the whole batch; in float32, whatever dtype the network computes in.
                likeliest = logits.float().softmax(dim=1).clamp_(max=1).topk(top_k, dim=1)
            # The first copy waits for the device, so all device work is submitted before it.
            host_features = features.float().cpu().numpy()
            finite = np.isfinite(host_features).all(axis=1)
            if likeliest is None:
                return [
                    ItemOutput(row, None, None, finite=bool(ok)) for row, ok in zip(host_features, finite, strict=True)
                ]
            probabilities, indices = likeliest.values.cpu().numpy(), likeliest.indices.cpu().numpy()
            finite &= np.isfinite(probabilities).all(axis=1)
        return [
            ItemOutput(
                host_features[row],
                indices[row, : item.request.top_k],
                probabilities[row, : item.request.top_k],
                finite=bool(finite[row]),
            )
            for row, item in enumerate(items)
        ]

    def prepare_thread(self) -> None:
        """Prepare the current thread for calls of `run`. Call once in each such thread."""
        cores.use_cores_in_this_thread(self.hints.intra_op_threads)
        if self.hints.max_in_flight > 1:
            cuda.use_own_stream_in_this_thread(self.model.placement.device)

    def forward(self, pixels: torch.Tensor, cancel_token: CancelToken = NEVER_CANCELLED) -> FeaturesAndLogits:
        """Run the backend on (N, 3, side, side) uint8 pixels. Call it with the lock held."""
        with torch.inference_mode():
            return self._backend.run(pixels, cancel_token)

    def close(self) -> None:
        """End the threads of the backend. No forward may be running."""
        self._backend.close()

    def warm_up(self) -> None:
        """Run batches of the backend's warm-up sizes. Call it in each thread that will call `run`, one after another.

        Raises WarmUpError, also for a model that is not in eval mode or whose outputs are not finite; DisagreementError
        if the outputs differ from those of PyTorch.
        """
        model = self.model
        if any(module.training for module in model.network.modules()):
            raise WarmUpError(model.name, "it is not in eval mode")
        picture = backend_agreement.drawn_picture(model.transform)
        drawn = BatchItem(picture, InferenceRequest("classify", top_k=min(1, model.network.classes)))
        try:
            outputs = [output for size in self.hints.warm_up_sizes for output in self.run([drawn] * size)]
            self._compare(picture, outputs)
        except WarmUpError:
            raise
        except Exception as error:
            raise WarmUpError(model.name, f"{type(error).__name__}: {error}") from error

    def _compare(self, picture: torch.Tensor, outputs: list[ItemOutput]) -> None:
        """Compare the outputs for one picture with those of PyTorch in float32."""
        model = self.model
        if not all(output.finite for output in outputs):
            raise WarmUpError(model.name, "its outputs are not finite numbers")
        pixels = _stacked([picture], model.placement.device)
        with self.lock.shared():
            if self._reference is None:
                self._reference = backend_agreement.reference(model, pixels)
            logits = self.forward(pixels).logits
        if self._reference is None:
            return
        for output in outputs:
            answer = FeaturesAndLogits(torch.from_numpy(output.features)[None], logits)
            backend_agreement.check(model, answer, self._reference, pixels)


def _stacked(images: list[torch.Tensor], device: torch.device) -> torch.Tensor:
    """Stack (3, H, W) uint8 images, channels last in memory, to (N, 3, H, W) of the same layout, in host memory that
    is fast to copy to `device`."""
    rows = [image.permute(1, 2, 0) for image in images]
    batch = cuda.host_batch((len(rows), *rows[0].shape), device)
    # One call, which releases the GIL once. NumPy would reacquire it after each image, from a busy event loop.
    return torch.stack(rows, out=batch).permute(0, 3, 1, 2)
