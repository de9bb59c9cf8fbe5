"""Owns one loaded model and its device. Enters inference_mode once per batch, in the thread that runs it: the mode is
thread-local, entered anywhere else it does nothing here. A backend that hands pieces to threads of its own enters it
there as well; nothing else on the serving path does."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import nn

from models.backends import Backend, BatchHints
from models.hardware import cores, cuda
from models.inference import backend_agreement
from models.inference.batch_item import BatchItem, ItemOutput
from models.interface.cancellation import Wanted, always
from models.interface.errors import WarmUpError
from models.loading.load import LoadedModel
from models.networks.network import FeaturesAndLogits
from models.scheduling.fair_lock import FairLock


class Engine:
    """Runs batches of one model. `turn` is held during every use of the model, by serving and by the lens: batches of
    up to `hints.max_in_flight` threads share it."""

    def __init__(self, model: LoadedModel, backend: Backend) -> None:
        self.model = model
        self.turn = FairLock()
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
        """What the backend runs, where that is a module of PyTorch's: to be looked at with the turn held."""
        return self._backend.network

    @property
    def memory_note(self) -> str | None:
        """Why PyTorch cannot tell how much memory its forward takes; None where it can."""
        return self.hints.memory_note

    def run(self, items: Sequence[BatchItem]) -> list[ItemOutput]:
        """One forward for all `items`, answered in order. Raises AllCancelledError, for which the backend has to run it
        in pieces, when none of them is wanted any more."""
        top_k = max(item.top_k for item in items)
        with self.turn.shared(), torch.inference_mode():
            pixels = _stacked([item.image for item in items], self.model.placement.device)
            features, logits = self.forward(pixels, lambda: any(item.wanted() for item in items))
            likeliest = None
            if top_k:
                # Once for the batch, not once an image; in float32, whatever the network computes in.
                likeliest = logits.float().softmax(dim=1).clamp_(max=1).topk(top_k, dim=1)
            # The first copy waits for the device: by then all there is to do has been given to it.
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
                indices[row, : item.top_k],
                probabilities[row, : item.top_k],
                finite=bool(finite[row]),
            )
            for row, item in enumerate(items)
        ]

    def prepare_thread(self) -> None:
        """To be called once in each thread that will call `run`, before it does."""
        cores.use_cores_in_this_thread(self.hints.intra_op_threads)
        if self.hints.max_in_flight > 1:
            cuda.use_own_stream_in_this_thread(self.model.placement.device)

    def forward(self, pixels: torch.Tensor, wanted: Wanted = always) -> FeaturesAndLogits:
        """The forward of `run` alone, of a batch as a backend takes it. The turn is its caller's to hold."""
        with torch.inference_mode():
            return self._backend.run(pixels, wanted)

    def close(self) -> None:
        """End what threads the backend has. Nothing runs any more."""
        self._backend.close()

    def warm_up(self) -> None:
        """Run batches of the sizes that the backend wants to have run, as requests will. To be called in each thread
        that will call `run`, in one after another.

        Raises WarmUpError, also for a model that is not in eval mode or whose outputs are not finite numbers, and
        DisagreementError where they are not those of PyTorch.
        """
        model = self.model
        if any(module.training for module in model.network.modules()):
            raise WarmUpError(model.name, "it is not in eval mode")
        picture = backend_agreement.drawn_picture(model.transform)
        drawn = BatchItem(picture, top_k=min(1, model.network.classes))
        try:
            outputs = [output for size in self.hints.warm_up_sizes for output in self.run([drawn] * size)]
            self._compare(picture, outputs)
        except WarmUpError:
            raise
        except Exception as error:
            raise WarmUpError(model.name, f"{type(error).__name__}: {error}") from error

    def _compare(self, picture: torch.Tensor, outputs: list[ItemOutput]) -> None:
        """Hold what batches of one picture have given to what the network gives."""
        model = self.model
        if not all(output.finite for output in outputs):
            raise WarmUpError(model.name, "its outputs are not finite numbers")
        pixels = _stacked([picture], model.placement.device)
        with self.turn.shared():
            if self._reference is None:
                self._reference = backend_agreement.reference(model, pixels)
            logits = self.forward(pixels).logits
        if self._reference is None:
            return
        for output in outputs:
            answer = FeaturesAndLogits(torch.from_numpy(output.features)[None], logits)
            backend_agreement.check(model, answer, self._reference, pixels)


def _stacked(images: list[torch.Tensor], device: torch.device) -> torch.Tensor:
    """(3, H, W) uint8 tensors, channels last in memory, as one (N, 3, H, W) tensor of the same kind, to go to
    `device`."""
    rows = [image.permute(1, 2, 0) for image in images]
    batch = cuda.host_batch((len(rows), *rows[0].shape), device)
    # One call, which lets the GIL go once: NumPy's would ask for it back after each image, from a busy event loop.
    return torch.stack(rows, out=batch).permute(0, 3, 1, 2)
