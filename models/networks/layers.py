"""Networks that serve one of their inner layers; all that comes after it is cut off and not computed.

torch.fx traces the forward, and removes what the layer does not need from the graph and from the weights. Layers are
named as in `torchvision.models.feature_extraction.get_graph_node_names`: a module, as `layer3` or `blocks.5`, stands
for its last operation.
"""

from __future__ import annotations

import copy
import difflib
from typing import Any

import torch
from timm.layers._fx import get_notrace_functions, get_notrace_modules
from torch import nn
from torchvision.models.feature_extraction import create_feature_extractor, get_graph_node_names

from models.interface.errors import UnsupportedArchitectureError
from models.networks.network import MeanOver, Network
from models.networks.specs import FeatureForm, FeatureLayer

# Two, to distinguish the batch dimension from dimensions of size 1.
_IMAGES = 2


def cut_at_layer(name: str, classifier: nn.Module, layer: FeatureLayer, input_size: int) -> Network:
    """Return the part of `classifier` that `layer` needs, in eval mode. Its features are the output of the layer.

    Raises UnsupportedArchitectureError if there is no such layer, torch.fx cannot trace the forward, or the output has
    no positions to take the mean over.
    """
    classifier.eval()
    _check_node(name, _nodes(name, classifier), layer.node)
    extractor = create_feature_extractor(
        classifier, {layer.node: _Layer.KEY}, tracer_kwargs=_tracer_options(), suppress_diff_warning=True
    )
    return _network(name, _Layer(extractor), layer.form, input_size, of=layer.node, body_prefix="graph.")


def without_head(name: str, module: nn.Module, input_size: int) -> Network:
    """Return a network for a module without classes, in eval mode. Features are its output, averaged over the positions
    of a map or tokens. Raises UnsupportedArchitectureError for any other output."""
    return _network(name, module, "pooled", input_size, of="it", body_prefix="")


def _tracer_options() -> dict[str, list[object]]:
    """Return the modules and functions of timm that torch.fx must not trace into."""
    modules, functions = get_notrace_modules(), get_notrace_functions()  # type: ignore[no-untyped-call]
    return {"leaf_modules": list(modules), "autowrap_functions": list(functions)}


def _nodes(name: str, classifier: nn.Module) -> list[str]:
    try:
        _, nodes = get_graph_node_names(classifier, tracer_kwargs=_tracer_options(), suppress_diff_warning=True)
    except Exception as error:
        # Any exception: a forward may do anything with the tracer's proxies.
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise UnsupportedArchitectureError(
            name, f"torch.fx cannot follow its forward, so no layer of it can be served alone: {reason}"
        ) from error
    return list(nodes)


def _check_node(name: str, nodes: list[str], wanted: str) -> None:
    known = list(dict.fromkeys(part for node in nodes for part in _ancestry(node)))
    if wanted in known:
        return
    close = difflib.get_close_matches(wanted, known, n=3)
    hint = f"did you mean {', '.join(close)}?" if close else f"there is {', '.join(dict.fromkeys(_tops(nodes)))}"
    raise UnsupportedArchitectureError(name, f"it has no layer {wanted!r}; {hint}")


def _ancestry(node: str) -> list[str]:
    """layer3.0.conv1: layer3, layer3.0 and itself."""
    parts = node.split(".")
    return [".".join(parts[: count + 1]) for count in range(len(parts))]


def _tops(nodes: list[str]) -> list[str]:
    return [node.split(".")[0] for node in nodes]


def _network(name: str, body: nn.Module, form: FeatureForm, input_size: int, *, of: str, body_prefix: str) -> Network:
    images = torch.rand(_IMAGES, 3, input_size, input_size)
    with torch.no_grad():
        given = body.eval()(images)
    if not isinstance(given, torch.Tensor) or given.dim() < 2 or len(given) != _IMAGES:  # noqa: PLR2004 - (N, …)
        what = f"{tuple(given.shape)} for two images" if isinstance(given, torch.Tensor) else type(given).__name__
        raise UnsupportedArchitectureError(name, f"{of} gives {what}, and not a row for each image")
    shape = tuple(given.shape[1:])
    if form == "map":
        return Network(body, None, feature_shape=shape, classes=0, pool=nn.Flatten(), body_prefix=body_prefix).eval()
    pool = _pool(shape)
    if pool is None:
        raise UnsupportedArchitectureError(name, f"{of} gives {shape} an image, which is no map: ask for it as a map")
    with torch.no_grad():
        dimensions = pool(given).shape[1]
    return Network(body, None, feature_shape=(dimensions,), classes=0, pool=pool, body_prefix=body_prefix).eval()


def _pool(shape: tuple[int, ...]) -> nn.Module | None:
    """Return the mean over positions for the shape of one image's output: (D,), (L, D), (D, H, W) or (H, W, D); None
    for anything else. The sides of a map are equal, because images are square; of three equal sizes, channels come
    first."""
    match shape:
        case (_,):
            return nn.Identity()
        case (_, _):
            return MeanOver(1)
        case (_, height, width) if height == width:
            return MeanOver(2, 3)
        case (height, width, _) if height == width:
            return MeanOver(1, 2)
        case _:
            return None


class _Layer(nn.Module):
    """The output of torchvision's extractor, taken out of its dictionary."""

    KEY = "layer"

    def __init__(self, graph: nn.Module) -> None:
        super().__init__()
        self.graph = graph

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        layer: torch.Tensor = self.graph(images)[self.KEY]
        return layer

    def __deepcopy__(self, memo: dict[int, Any]) -> _Layer:
        copied = _Layer(copy.deepcopy(self.graph, memo))
        memo[id(self)] = copied
        # A copy of torchvision's extractor is in train mode, whatever the original was in.
        return copied.train(self.training)
