"""Compare the arms on the model that an engine serves."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from gradless.arms import Arm, Inputs, Subject
from gradless.comparison import run_comparison
from gradless.measuring import ComparisonProgress
from gradless.records import Comparison, ComparisonOptions, Progress
from models.hardware import memory
from models.inference.engine import Engine
from models.networks.network import FeaturesAndLogits

_SEED = 0

_RANDOM_PIXELS = f"random pixels, seed {_SEED}"
_UPLOADED_IMAGE = "the uploaded image"

_NOT_PYTORCH = "its forward runs outside PyTorch"


def compare_served(
    engine: Engine,
    options: ComparisonOptions,
    *,
    image: torch.Tensor | None = None,
    cancelled: Callable[[], bool] = lambda: False,
    on_progress: Callable[[Progress], object] = lambda _: None,
) -> Comparison:
    """Compare the arms on the served model with `image`, (3, side, side) uint8 of the model's input size.

    The image fills the whole batch; without one, the batch is seeded random pixels. The engine's lock is taken for one
    forward at a time, so that serving continues in between. Before each forward `cancelled` is checked and
    `on_progress` called, in this thread. Raises ComparisonCancelledError and ComparisonTooLargeError.
    """
    return run_comparison(_subject(engine, image), options, ComparisonProgress(cancelled, on_progress))


def _subject(engine: Engine, image: torch.Tensor | None) -> Subject:
    model = engine.model
    side = model.transform.crop

    def batch(size: int) -> Inputs:
        if image is None:
            generator = torch.Generator().manual_seed(_SEED)
            pixels = torch.randint(0, 256, (size, 3, side, side), dtype=torch.uint8, generator=generator)
        else:
            pixels = image.expand(size, -1, -1, -1).contiguous()
        with engine.lock, torch.no_grad():
            images: torch.Tensor = model.normalize(pixels.to(model.placement.device))
        return Inputs(size, (images,), pixels=pixels.contiguous(memory_format=torch.channels_last))

    return Subject(
        network=model.network,
        device=model.placement.device,
        batch=batch,
        input=_RANDOM_PIXELS if image is None else _UPLOADED_IMAGE,
        model=model.name,
        architecture=model.architecture,
        dtype=model.placement.dtype_name,
        fingerprint=model.fingerprint,
        backend=model.placement.backend,
        served=_served_arm(engine),
        answer=_answer,
        lock=engine.lock,
        original_name=model.network.original_name,
        classes=model.network.classes > 0,
        free_bytes=memory.free_bytes,
        reset_peak=memory.begin_peak,
        release=memory.trim,
    )


def _served_arm(engine: Engine) -> Arm:
    def forward(inputs: Inputs) -> FeaturesAndLogits:
        if inputs.pixels is None:  # pragma: no cover - batches of a served model have pixels
            raise ValueError("there are no pixels to serve")
        # Larger batches are never served.
        outputs = [engine.forward(pixels) for pixels in torch.split(inputs.pixels, engine.max_batch_size)]
        if len(outputs) == 1:
            return outputs[0]
        # Inference tensors are joined into an inference tensor.
        with torch.inference_mode(outputs[0].features.is_inference()):
            return FeaturesAndLogits(*map(torch.cat, zip(*outputs, strict=True)))

    return Arm(
        name="served",
        forward=forward,
        network=engine.served_network,
        memory_note=engine.memory_note,
        retained_note=None if engine.served_network is not None else _NOT_PYTORCH,
    )


def _answer(output: Any) -> Any:
    """Return the logits, or the features of a network without classes; of other networks the whole output."""
    if isinstance(output, FeaturesAndLogits):
        return output.logits if output.logits.shape[1] else output.features
    return output
