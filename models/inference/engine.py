"""The engine: one loaded model on its device, and the check at its warm-up that the backend agrees with PyTorch.

It enters inference_mode once per batch, in the thread that runs the batch: the mode is thread-local. A backend with
threads of its own enters it there as well. Nothing else on the serving path does.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Sequence
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from models import backends
from models.backends import Backend, BatchHints
from models.hardware import memory
from models.images import samples
from models.images.preprocessing import Transform
from models.inference.image_job import BatchItem, ItemOutput
from models.interface.errors import DisagreementError, WarmUpError
from models.interface.model_sources import Precision
from models.interface.request import NEVER_CANCELLED, AllCancelled, CancelToken, InferenceRequest
from models.loading.load import LoadedModel
from models.networks.network import FeaturesAndLogits
from models.scheduling.fairness import FairLock

_log = logging.getLogger(__name__)

T = TypeVar("T")

# Largest allowed |output - reference| / |reference|, of features and of logits. Largest measured values, on CPUs with 5
# architectures: fp32 1e-6, bf16 0.03, int8 0.2. All-zero outputs are at 1.
_TOLERANCES: dict[Precision, float] = {"fp32": 0.02, "fp16": 0.05, "bf16": 0.2, "int8": 0.6}

# Smallest root mean square of the reference in that quotient, so that outputs near zero are comparable.
_FLOOR = 1e-3


class Engine:
    """Runs batches of one model. Every use of the model holds `lock`: batches share it, the lens has it exclusively."""

    def __init__(self, model: LoadedModel, backend: Backend) -> None:
        self.model = model
        self.lock = FairLock()
        self._backend = backend
        self._reference: FeaturesAndLogits | None = None

    @property
    def hints(self) -> BatchHints:
        return self._backend.hints

    @property
    def served_network(self) -> nn.Module | None:
        """The module that the backend runs; None if it runs no PyTorch module. Read it with the lock held."""
        return self._backend.network

    def run(self, items: Sequence[BatchItem]) -> list[ItemOutput]:
        """Run one forward and return one output per item, in order. Raises AllCancelledError if all items were
        cancelled and the backend runs the batch in pieces."""
        requests = [item.request for item in items]
        top_k = max(request.top_k for request in requests)
        all_classes = any(request.all_probabilities for request in requests)
        with self.lock.shared(), torch.inference_mode():
            pixels = _stacked([item.image for item in items], self.model.placement.device)
            features, logits = self.forward(pixels, AllCancelled([request.cancel_token for request in requests]))
            everything = logits.new_empty((len(items), 0), dtype=torch.float32)
            if top_k or all_classes:
                # Once for the whole batch; in float32, whatever dtype the network computes in.
                everything = logits.float().softmax(dim=1).clamp_(max=1)
            probabilities, indices = everything.topk(top_k, dim=1)
            # The first copy waits for the device, so all device work is submitted before it.
            on_host = features.float().cpu().numpy(), indices.cpu().numpy(), probabilities.cpu().numpy()
            everything_on_host = everything.cpu().numpy() if all_classes else None
        return _outputs(requests, *on_host, everything_on_host)

    def prepare_thread(self) -> None:
        """Prepare the current thread for calls of `run`. Call once in each such thread."""
        torch.set_num_threads(self.hints.intra_op_threads)
        device = self.model.placement.device
        if self.hints.max_concurrent_batches > 1 and device.type == "cuda":
            # With a stream of their own, threads copy, compute and wait independently. The model is loaded before.
            torch.cuda.synchronize(device)
            torch.cuda.set_stream(torch.cuda.Stream(device))  # type: ignore[no-untyped-call]  # PyTorch's own

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
        if the outputs differ from those of PyTorch in float32: a faulty conversion, or a converted model that is
        damaged on disk, gives finite numbers and wrong classes.
        """
        model = self.model
        if any(module.training for module in model.network.modules()):
            raise WarmUpError(model.name, "it is not in eval mode")
        picture = drawn_picture(model.transform)
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
                self._reference = _reference(model, pixels)
            logits = self.forward(pixels).logits
        if self._reference is None:
            return
        for output in outputs:
            _check(model, FeaturesAndLogits(torch.from_numpy(output.features)[None], logits), self._reference, pixels)


def _outputs(
    requests: Sequence[InferenceRequest],
    features: NDArray[np.float32],
    indices: NDArray[np.int64],
    probabilities: NDArray[np.float32],
    everything: NDArray[np.float32] | None,
) -> list[ItemOutput]:
    """Return what each request asked for: features (N, D), indices and probabilities (N, K) of the likeliest classes,
    and all probabilities (N, C)."""
    finite = np.asarray(np.isfinite(features).all(axis=1) & np.isfinite(probabilities).all(axis=1))
    if everything is not None:
        finite &= np.isfinite(everything).all(axis=1)
    return [
        ItemOutput(
            features[row],
            indices[row, : request.top_k],
            probabilities[row, : request.top_k],
            finite=bool(finite[row]),
            all_probabilities=everything[row] if everything is not None and request.all_probabilities else None,
        )
        for row, request in enumerate(requests)
    ]


def with_fresh_conversion(model: LoadedModel, serve: Callable[[bool], T]) -> T:
    """Call `serve(False)`, which may use a cached conversion; if its outputs disagree, call `serve(True)`, which
    converts the model again. Raises what `serve` raises."""
    if not backends.caches_conversions(model.placement) or model.quantized is not None:
        return serve(False)
    try:
        return serve(False)
    except DisagreementError as error:
        _log.warning("%s; it is converted again", error)
    # Outside the handler: the frames of the error hold the first backend.
    return serve(True)


def drawn_picture(transform: Transform) -> torch.Tensor:
    """Return a fixed picture of a clock, (3, crop, crop) uint8, channels last in memory."""
    pixels = np.array(samples.draw("clock").resize((transform.crop, transform.crop)))
    return torch.from_numpy(pixels.transpose(2, 0, 1))


def _reference(model: LoadedModel, pixels: torch.Tensor) -> FeaturesAndLogits | None:
    """Return the network's output for (N, 3, crop, crop) uint8 pixels, float32 on the CPU. None if there is no memory
    for that alongside the served models."""
    # Not inference_mode: tensors that a network caches in its first forward would stay inference tensors.
    try:
        with torch.no_grad():
            features, logits = model.network(model.normalize(pixels.to(model.placement.device)))
    except Exception as error:
        if not memory.ran_out(error):
            raise
        _log.warning("%s is served without a comparison with PyTorch: there is no memory for it", model.name)
        return None
    return FeaturesAndLogits(features.float().cpu(), logits.float().cpu())


def _check(model: LoadedModel, found: FeaturesAndLogits, expected: FeaturesAndLogits, pixels: torch.Tensor) -> None:
    """Raise DisagreementError if a backend's output for `pixels` differs from `expected`, the reference."""
    tolerance = _TOLERANCES[model.placement.precision]
    difference = _difference(found, expected)
    # NaN compares false, so it is a disagreement.
    if difference <= tolerance:
        return
    again = _reference(model, pixels)
    if again is not None and not _difference(again, expected) <= tolerance:
        _log.warning("%s is not deterministic, so its backend cannot be checked", model.name)
        return
    raise DisagreementError(model.name, model.placement.backend, difference, tolerance)


def _difference(found: FeaturesAndLogits, expected: FeaturesAndLogits) -> float:
    return max(_relative(one.float().cpu(), other) for one, other in zip(found, expected, strict=True))


def _relative(found: torch.Tensor, expected: torch.Tensor) -> float:
    if found.shape != expected.shape:
        return math.nan
    return float((found - expected).norm() / max(float(expected.norm()), _FLOOR * math.sqrt(expected.numel()), 1e-30))


def _stacked(images: list[torch.Tensor], device: torch.device) -> torch.Tensor:
    """Stack (3, H, W) uint8 images, channels last in memory, to (N, 3, H, W) of the same layout on the host. For CUDA
    the memory is pinned, which makes the copy to `device` asynchronous; PyTorch reuses it after the copy."""
    rows = [image.permute(1, 2, 0) for image in images]
    batch = torch.empty((len(rows), *rows[0].shape), dtype=torch.uint8, pin_memory=device.type == "cuda")
    # One call, which releases the GIL once. NumPy would reacquire it after each image, from a busy event loop.
    return torch.stack(rows, out=batch).permute(0, 3, 1, 2)
