"""One forward that answers both questions: what is it (logits), and what does it look like (features)."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import nn

from models.errors import UnsupportedArchitectureError


class FeaturesAndLogits(NamedTuple):
    features: torch.Tensor
    logits: torch.Tensor


class Network(nn.Module):
    """A classifier cut at its head, the last linear map: features are what goes into it, logits what comes out.

    (N, 3, H, W) float in; features (N, D) and logits (N, C) of the same dtype out.
    """

    def __init__(self, body: nn.Module, head: nn.Linear, head_name: str = "head") -> None:
        super().__init__()
        self.body = body
        self.head = head
        self._head_name = head_name

    @property
    def dimensions(self) -> int:
        return self.head.in_features

    @property
    def classes(self) -> int:
        return self.head.out_features

    def original_name(self, name: str) -> str:
        """What the classifier's makers call the module that is `name` in here; "" is the classifier itself."""
        return self._head_name if name == "head" else name.removeprefix("body").removeprefix(".")

    def forward(self, images: torch.Tensor) -> FeaturesAndLogits:
        features = self.body(images)
        return FeaturesAndLogits(features, self.head(features))


def cut_at_head(name: str, classifier: nn.Module, input_size: int) -> Network:
    """Split `classifier` (changed in place) so that its forward yields features as well.

    Raises UnsupportedArchitectureError unless the logits of one random image stay equal: the last linear layer
    is then the last thing the network does.
    """
    linears = [path for path, module in classifier.named_modules() if isinstance(module, nn.Linear)]
    if not linears:
        raise UnsupportedArchitectureError(name, "it has no linear layer to cut features off before")
    image = torch.rand(1, 3, input_size, input_size)
    classifier.eval()
    with torch.no_grad():
        whole = classifier(image)
    head = classifier.get_submodule(linears[-1])
    if not isinstance(head, nn.Linear):  # pragma: no cover - it was found as one
        raise UnsupportedArchitectureError(name, f"{linears[-1]} is not a linear layer")
    classifier.set_submodule(linears[-1], nn.Identity())
    network = Network(classifier, head, linears[-1]).eval()
    with torch.no_grad():
        cut = network(image)
    if cut.features.shape != (1, head.in_features) or not torch.equal(cut.logits, whole):
        raise UnsupportedArchitectureError(name, f"its logits are not what its last linear layer, {linears[-1]}, gives")
    return network
