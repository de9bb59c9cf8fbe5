"""Export a network for another engine than PyTorch: what a backend such as OpenVINO's or ONNX Runtime's converts."""

from __future__ import annotations

import torch
from torch import nn

from models.loading.load import LoadedModel
from models.networks.network import FeaturesAndLogits

# Above any batch that is served; torch.export needs a bound for its shape constraints.
_MAX_BATCH = 1024


class _FromPixels(nn.Module):
    """The module that is exported."""

    def __init__(self, model: LoadedModel) -> None:
        super().__init__()
        self.normalize = model.normalize
        self.network = model.network

    def forward(self, pixels: torch.Tensor) -> tuple[torch.Tensor, ...]:
        answer: FeaturesAndLogits = self.network(self.normalize(pixels.permute(0, 3, 1, 2)))
        return answer if self.network.classes else (answer.features,)


def exported(model: LoadedModel) -> torch.export.ExportedProgram:
    """Return the network of a model on a CPU with its normalization. It maps (N, side, side, 3) uint8, 1 <= N <= 1024,
    to features (N, D) and, if there are classes, logits (N, C), both float32. `torch.onnx.export`, for which
    onnxscript must be installed, takes it too."""
    side = model.transform.crop
    example = torch.zeros(2, side, side, 3, dtype=torch.uint8)
    batch = torch.export.Dim("batch", min=1, max=_MAX_BATCH)
    with torch.no_grad():
        return torch.export.export(_FromPixels(model).eval(), (example,), dynamic_shapes=({0: batch},))
