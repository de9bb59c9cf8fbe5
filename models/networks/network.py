"""A network whose one forward returns both features and logits."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import nn


class FeaturesAndLogits(NamedTuple):
    """Features (N, D) and logits (N, C) of one dtype; C is 0 for a network without classes."""

    features: torch.Tensor
    logits: torch.Tensor


class Network(nn.Module):
    """A classifier cut at its head: the body computes the input of the head, the head computes logits.

    Maps (N, 3, H, W) float to features (N, D) and logits (N, C) of the same dtype. The head of most networks is the
    last linear layer, and features are its input. If the input is a map, features are the output of `pool` for it.
    `head` None: there are no classes. `feature_shape`: shape of one image's features before they are flattened to D
    numbers. `head_name` and `body_prefix` are for `original_name`.
    """

    def __init__(
        self,
        body: nn.Module,
        head: nn.Module | None,
        *,
        feature_shape: tuple[int, ...],
        classes: int,
        pool: nn.Module | None = None,
        head_name: str = "head",
        body_prefix: str = "",
    ) -> None:
        super().__init__()
        self.body = body
        self.head = NoClasses() if head is None else head
        self.pool = nn.Identity() if pool is None else pool
        self.feature_shape = feature_shape
        self.classes = classes
        self._head_name = head_name
        self._body_prefix = body_prefix

    @property
    def dimensions(self) -> int:
        """D, the number of features of an image."""
        return math.prod(self.feature_shape)

    def original_name(self, name: str) -> str:
        """Return the name in the original classifier of the module `name` of this network; "" is the classifier
        itself."""
        if name.split(".", maxsplit=1)[0] in {"head", "pool"}:
            return self._head_name
        return name.removeprefix("body").removeprefix(".").removeprefix(self._body_prefix)

    def head_input(self, images: torch.Tensor) -> Any:
        """Return the input of the head for (N, 3, H, W) images."""
        return self.body(images)

    def features_of(self, head_input: Any) -> torch.Tensor:
        """Return features (N, D)."""
        features: torch.Tensor = self.pool(head_input)
        return features

    def logits_of(self, head_input: Any) -> torch.Tensor:
        """Return logits (N, C)."""
        logits: torch.Tensor = self.head(head_input)
        return logits

    def forward(self, images: torch.Tensor) -> FeaturesAndLogits:
        head_input = self.head_input(images)
        return FeaturesAndLogits(self.features_of(head_input), self.logits_of(head_input))


class TimmNetwork(Network):
    """A timm network cut by timm's own methods, for heads of more than one layer. Both parts are methods of one module;
    features are what timm calls pre-logits."""

    body: Any

    def __init__(self, whole: nn.Module, *, dimensions: int, classes: int) -> None:
        super().__init__(whole, nn.Identity(), feature_shape=(dimensions,), classes=classes)

    def head_input(self, images: torch.Tensor) -> Any:
        return self.body.forward_features(images)

    def features_of(self, head_input: Any) -> torch.Tensor:
        features: torch.Tensor = self.body.forward_head(head_input, pre_logits=True)
        return features

    def logits_of(self, head_input: Any) -> torch.Tensor:
        logits: torch.Tensor = self.body.forward_head(head_input)
        return logits


class NoClasses(nn.Module):
    """The head of a network without classes: maps (N, …) to (N, 0)."""

    def forward(self, head_input: torch.Tensor) -> torch.Tensor:
        # Not len(), which torch.export would turn into a constant.
        return head_input.new_empty((head_input.shape[0], 0))


class MeanOver(nn.Module):
    """The mean over some dimensions: the positions of a map or of a sequence of tokens."""

    def __init__(self, *dimensions: int) -> None:
        super().__init__()
        self._dimensions = dimensions

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        return values.mean(self._dimensions)
