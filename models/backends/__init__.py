"""The ways to run a forward. Each is made from a loaded model and maps a batch of pixels to features and logits."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Protocol

import torch
from torch import nn

from models.hardware import cuda
from models.interface.cancellation import NEVER_CANCELLED, CancelToken
from models.loading.load import LoadedModel
from models.networks.network import FeaturesAndLogits

# OpenVINO and NNCF report to their makers that they are used, at each import, unless the package that does it is not
# installed. What serves other people's pictures tells nobody of it.
sys.modules["openvino_telemetry"] = None  # type: ignore[assignment]  # Python's own way to say that it is not there


class Backend(Protocol):
    """One way to run a model's forward. `run` is called under inference_mode, by as many threads at the same time as
    there are `lanes`."""

    def run(self, pixels: torch.Tensor, cancel_token: CancelToken = NEVER_CANCELLED) -> FeaturesAndLogits:
        """(N, 3, side, side) uint8 on the CPU, channels last in memory, to features (N, D) and logits (N, C),
        of a floating-point type and on a device of the backend's choice.

        Raises AllCancelledError where it runs a batch in pieces and finds the token cancelled before one of them.
        """

    def close(self) -> None:
        """End what threads it has. Nothing runs in it any more."""

    @property
    def lanes(self) -> int:
        """Batches that may be under way at the same time. Two where the second finds its place behind the first, so
        that the device does not wait between them; one where they would only be in each other's way."""

    @property
    def room_from(self) -> int | None:
        """Images from which on the cores run a batch each on its own, so that one that is done can begin with the next
        batch, be it as small as it may. None where a batch has all there is of the device until it ends."""

    @property
    def intra_op_threads(self) -> int:
        """Threads that PyTorch may use for an operation in the thread that calls `run`. More than one only where the
        forward itself is PyTorch's: those that wait for work spin, and take cores from the decoders."""

    @property
    def network(self) -> nn.Module | None:
        """The module that `run` calls; None where PyTorch does not run it as a module."""

    @property
    def memory_note(self) -> str | None:
        """Why PyTorch cannot tell how much memory `run` takes; None where it can."""

    @property
    def sizes_to_warm_up(self) -> tuple[int, ...]:
        """Batch sizes to run before the service is ready."""


def make(
    model: LoadedModel, *, max_batch_size: int, cache_folder: Path, fixed_shape: bool = False, fresh: bool = False
) -> Backend:
    """The backend that `model` is placed on, ready to be warmed up. `fixed_shape`: every forward is of one shape, to
    which batches are padded, so that what an image gives does not depend on its company. `fresh`: what an earlier start
    has left in `cache_folder` is not used, but replaced. Raises StartError."""
    # Each is imported when it is asked for: torch's compiler and OpenVINO take seconds to import.
    match model.placement.backend:
        case "eager" | "compiled" if cuda.records_forwards(model.placement.device):
            from models.backends.recorded import RecordedBackend  # noqa: PLC0415

            return RecordedBackend(model, max_batch_size=max_batch_size, fixed_shape=fixed_shape)
        case "eager":
            from models.backends.eager import EagerBackend  # noqa: PLC0415

            return EagerBackend(model, max_batch_size=max_batch_size, fixed_shape=fixed_shape)
        case "compiled":
            from models.backends.compiled import CompiledBackend  # noqa: PLC0415

            return CompiledBackend(model, max_batch_size=max_batch_size, fixed_shape=fixed_shape)
        case "openvino":
            from models.backends.openvino import OpenVinoBackend  # noqa: PLC0415

            return OpenVinoBackend(
                model,
                max_batch_size=max_batch_size,
                cache_folder=cache_folder,
                fixed_shape=fixed_shape,
                fresh=fresh,
            )
        case "null":
            from models.backends.null import NullBackend  # noqa: PLC0415

            return NullBackend(model)
