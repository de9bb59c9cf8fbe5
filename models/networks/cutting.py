"""Cut a classifier at its head, or at an inner layer; what comes after an inner layer is not computed.

To find the head, forward hooks watch one forward: the head is the layer whose output is the logits. To serve an inner
layer, torch.fx traces the forward, and removes what the layer does not need from the graph and from the weights.
"""

from __future__ import annotations

import copy
import difflib
from functools import partial
from itertools import accumulate
from typing import Any, NamedTuple

import torch
from timm.layers._fx import get_notrace_functions, get_notrace_modules
from torch import nn
from torchvision.models.feature_extraction import create_feature_extractor, get_graph_node_names

from models.interface.errors import UnsupportedArchitectureError
from models.interface.model_sources import FeatureForm
from models.networks.network import MeanOver, Network, TimmNetwork
from models.networks.specs import FeatureLayer

# Two, to distinguish the batch dimension from dimensions of size 1.
_IMAGES = 2


class _Candidate(NamedTuple):
    """A module whose output is the logits, perhaps in another shape, and the shape of its input for one image."""

    path: str
    module: nn.Module
    input_shape: tuple[int, ...]


def cut_at_head(name: str, classifier: nn.Module, input_size: int) -> Network:
    """Split `classifier`, changed in place, so that its forward returns features as well, in eval mode.

    Features are the input of the head, a last layer that is linear or a convolution of one position. If the head is a
    convolution over a map and what follows it (SqueezeNet), features are the map's average over positions. timm's heads
    of more than one layer are cut by timm's methods.

    Raises UnsupportedArchitectureError unless the logits of one random image stay equal.
    """
    classifier.eval()
    image = torch.rand(1, 3, input_size, input_size)
    whole, candidates = _watched(name, classifier, image)
    for cut in (_before_last_layer, _before_last_convolution, _as_timm_does):
        network = cut(classifier, image, whole, candidates)
        if network is not None:
            return network.eval()
    raise UnsupportedArchitectureError(name, "its logits are not what a last linear layer or convolution of it gives")


def _watched(name: str, classifier: nn.Module, image: torch.Tensor) -> tuple[torch.Tensor, list[_Candidate]]:
    """Return the logits of `image`, and the modules whose output they are, innermost first."""
    outputs: list[tuple[_Candidate, torch.Tensor]] = []

    def record(path: str, module: nn.Module, inputs: tuple[object, ...], output: object) -> None:
        if isinstance(output, torch.Tensor) and inputs and isinstance(inputs[0], torch.Tensor):
            outputs.append((_Candidate(path, module, tuple(inputs[0].shape[1:])), output))

    named = [(path, module) for path, module in classifier.named_modules() if path]
    hooks = [module.register_forward_hook(partial(record, path)) for path, module in named]
    try:
        with torch.no_grad():
            whole = classifier(image)
    finally:
        for hook in hooks:
            hook.remove()
    if not isinstance(whole, torch.Tensor) or whole.dim() != 2 or len(whole) != 1:  # noqa: PLR2004 - (N, C)
        given = f"{tuple(whole.shape)} for one image" if isinstance(whole, torch.Tensor) else type(whole).__name__
        raise UnsupportedArchitectureError(name, f"it gives {given}, and not logits (N, C)")
    return whole, [candidate for candidate, output in outputs if _is_same(output, whole)]


def _is_same(output: torch.Tensor, whole: torch.Tensor) -> bool:
    """Return whether both are the same memory: logits are often a view of a layer's output in another shape."""
    same_memory = output.untyped_storage().data_ptr() == whole.untyped_storage().data_ptr()
    return same_memory and output.numel() == whole.numel()


def _before_last_layer(
    classifier: nn.Module, image: torch.Tensor, whole: torch.Tensor, candidates: list[_Candidate]
) -> Network | None:
    for path, module, shape in candidates:
        if isinstance(module, nn.Linear):
            head: nn.Module = module
        elif isinstance(module, nn.Conv2d) and shape[1:] == (1, 1):
            head = nn.Sequential(nn.Unflatten(1, shape), module, nn.Flatten())
        else:
            continue
        network = Network(classifier, head, feature_shape=(shape[0],), classes=whole.shape[1], head_name=path)
        if _replaced_and_equal(network, path, nn.Identity(), image, whole):
            return network
    return None


def _before_last_convolution(
    classifier: nn.Module, image: torch.Tensor, whole: torch.Tensor, candidates: list[_Candidate]
) -> Network | None:
    for path, module, _ in candidates:
        if not isinstance(module, nn.Sequential):
            continue
        layers = list(module)
        convolutions = [place for place, layer in enumerate(layers) if isinstance(layer, nn.Conv2d)]
        if not convolutions:
            continue
        before, after = layers[: convolutions[-1]], layers[convolutions[-1] :]
        shape = _input_shape(after[0], classifier, image)
        if shape is None:
            continue
        # The classifier still flattens the output of the sequence, which is now the map.
        network = Network(
            classifier,
            nn.Sequential(nn.Unflatten(1, shape), *after, nn.Flatten()),
            feature_shape=(shape[0],),
            classes=whole.shape[1],
            pool=nn.Sequential(nn.Unflatten(1, shape), MeanOver(2, 3)),
            head_name=path,
        )
        if _replaced_and_equal(network, path, nn.Sequential(*before), image, whole):
            return network
    return None


def _as_timm_does(
    classifier: nn.Module, image: torch.Tensor, whole: torch.Tensor, _: list[_Candidate]
) -> Network | None:
    if not all(callable(getattr(classifier, part, None)) for part in ("forward_features", "forward_head")):
        return None
    with torch.no_grad():
        try:
            head_input = classifier.forward_features(image)  # type: ignore[operator]  # checked above
            features = classifier.forward_head(head_input, pre_logits=True)  # type: ignore[operator]  # as above
        except TypeError:
            # A method of that name which is not timm's.
            return None
    if not isinstance(features, torch.Tensor) or features.dim() != 2:  # noqa: PLR2004 - (N, D)
        return None
    network = TimmNetwork(classifier, dimensions=features.shape[1], classes=whole.shape[1])
    return network if _equal(network, image, whole) else None


def _input_shape(module: nn.Module, classifier: nn.Module, image: torch.Tensor) -> tuple[int, ...] | None:
    """Return the shape of one image's input to `module` in a forward of `classifier`."""
    shapes: list[tuple[int, ...]] = []
    hook = module.register_forward_pre_hook(lambda _, inputs: shapes.append(tuple(inputs[0].shape[1:])))
    with torch.no_grad():
        classifier(image)
    hook.remove()
    return shapes[0] if len(shapes) == 1 else None


def _replaced_and_equal(
    network: Network, path: str, replacement: nn.Module, image: torch.Tensor, whole: torch.Tensor
) -> bool:
    """Replace the body's module at `path`, and undo it unless the logits stay equal."""
    replaced = network.body.get_submodule(path)
    network.body.set_submodule(path, replacement)
    if _equal(network, image, whole):
        return True
    network.body.set_submodule(path, replaced)
    return False


def _equal(network: Network, image: torch.Tensor, whole: torch.Tensor) -> bool:
    try:
        with torch.no_grad():
            features, logits = network.eval()(image)
    except (RuntimeError, TypeError, ValueError):
        # The rest of the body does not run without the layer.
        return False
    return features.shape == (1, network.dimensions) and torch.equal(logits, whole)


def cut_at_layer(name: str, classifier: nn.Module, layer: FeatureLayer, input_size: int) -> Network:
    """Return the part of `classifier` that `layer` needs, in eval mode. Its features are the output of the layer.

    Layers are named as in `torchvision.models.feature_extraction.get_graph_node_names`: a module, as `layer3` or
    `blocks.5`, stands for its last operation. Raises UnsupportedArchitectureError if there is no such layer, torch.fx
    cannot trace the forward, or the output has no positions to take the mean over.
    """
    classifier.eval()
    _check_node(name, classifier, layer.node)
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


def _check_node(name: str, classifier: nn.Module, wanted: str) -> None:
    try:
        _, nodes = get_graph_node_names(classifier, tracer_kwargs=_tracer_options(), suppress_diff_warning=True)
    except Exception as error:
        # Any exception: a forward may do anything with the tracer's proxies.
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        what = f"torch.fx cannot follow its forward, so no layer of it can be served alone: {reason}"
        raise UnsupportedArchitectureError(name, what) from error
    # layer3.0.conv1: layer3, layer3.0 and itself.
    known = list(dict.fromkeys(prefix for node in nodes for prefix in accumulate(node.split("."), "{}.{}".format)))
    if wanted in known:
        return
    close = difflib.get_close_matches(wanted, known, n=3)
    tops = ", ".join(part for part in known if "." not in part)
    hint = f"did you mean {', '.join(close)}?" if close else f"there is {tops}"
    raise UnsupportedArchitectureError(name, f"it has no layer {wanted!r}; {hint}")


def _network(name: str, body: nn.Module, form: FeatureForm, input_size: int, *, of: str, body_prefix: str) -> Network:
    images = torch.rand(_IMAGES, 3, input_size, input_size)
    with torch.no_grad():
        given = body.eval()(images)
    if not isinstance(given, torch.Tensor) or given.dim() < 2 or len(given) != _IMAGES:  # noqa: PLR2004 - (N, …)
        what = f"{tuple(given.shape)} for two images" if isinstance(given, torch.Tensor) else type(given).__name__
        raise UnsupportedArchitectureError(name, f"{of} gives {what}, and not a row for each image")
    shape = tuple(given.shape[1:])
    pool = nn.Flatten() if form == "map" else _pool(shape)
    if pool is None:
        raise UnsupportedArchitectureError(name, f"{of} gives {shape} an image, which is no map: ask for it as a map")
    feature_shape = shape if form == "map" else tuple(pool(given).shape[1:])
    return Network(body, None, feature_shape=feature_shape, classes=0, pool=pool, body_prefix=body_prefix).eval()


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
