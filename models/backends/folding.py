"""Fold BatchNorms into the convolutions before them. In eval mode a BatchNorm is a scale and a shift per channel.

Hooks watch one forward. A BatchNorm is folded if its input is the output of a convolution, and nothing else uses that
output, according to autograd's graph of the forward. The outputs of the folded network are compared with the original.
"""

from __future__ import annotations

import copy
import logging
from collections import Counter
from collections.abc import Iterable
from typing import Any

import torch
from timm.layers.norm_act import BatchNormAct2d
from torch import nn
from torch.nn.utils import fuse_conv_bn_eval

from models.networks.network import Network

_log = logging.getLogger(__name__)

# Largest allowed difference of an output, relative to the largest output.
TOLERANCE = 1e-4


def folded(network: Network, example: torch.Tensor) -> Network:
    """Return a copy of `network` (float32, eval mode) with BatchNorms folded, or a plain copy if outputs for `example`,
    (N, 3, H, W) float32, would differ by more than TOLERANCE. The copy is on the CPU, because CUDA's convolutions round
    to TF32, which differs by more."""
    plain = copy.deepcopy(network).cpu()
    with torch.no_grad():
        expected = plain(example)
        fused = copy.deepcopy(plain)
        pairs = _conv_bn_pairs(fused, example)
        for conv, norm in pairs:
            _fold(fused, conv, norm)
        found = fused(example)
    for before, after in zip(expected, found, strict=True):
        # Logits are empty if there are no classes.
        if before.numel() and (after - before).abs().max() > TOLERANCE * before.abs().max().clamp(min=1):
            _log.warning("BatchNorms are not folded, because the outputs would differ")
            return plain
    return fused


def _conv_bn_pairs(network: nn.Module, example: torch.Tensor) -> list[tuple[str, str]]:
    """Return names of (convolution, BatchNorm) pairs, each used once in a forward, in which only the BatchNorm uses the
    output of the convolution."""
    # Tensors are identified by autograd nodes, which are kept alive; a tensor changed in place gets another node.
    outputs: dict[Any, str] = {}
    inputs: dict[Any, str] = {}
    calls: Counter[str] = Counter()

    def watch(name: str, module: nn.Module) -> torch.utils.hooks.RemovableHandle:
        def record(_: nn.Module, args: tuple[Any, ...], output: Any) -> None:
            calls[name] += 1
            if isinstance(module, nn.Conv2d):
                outputs[output.grad_fn] = name
            else:
                inputs[args[0].grad_fn] = name

        return module.register_forward_hook(record)

    watched = [watch(name, m) for name, m in network.named_modules() if isinstance(m, nn.Conv2d | nn.BatchNorm2d)]
    with torch.enable_grad():
        # Gradients of the images give every tensor a node, even if all parameters are frozen.
        answer = network(example.detach().requires_grad_().clone())
    for handle in watched:
        handle.remove()
    uses = _uses(answer)
    return [
        (conv, inputs[node])
        for node, conv in outputs.items()
        if node in inputs and uses[node] == calls[conv] == calls[inputs[node]] == 1
    ]


def _uses(outputs: Iterable[torch.Tensor]) -> Counter[Any]:
    """Return how many operations used the output of each node of autograd's graph, on the way to `outputs`."""
    uses: Counter[Any] = Counter()
    visited = {output.grad_fn for output in outputs}
    waiting = list(visited)
    while waiting:
        node = waiting.pop()
        for taken, _ in () if node is None else node.next_functions:
            uses[taken] += 1
            if taken not in visited:
                visited.add(taken)
                waiting.append(taken)
    return uses


def _fold(network: nn.Module, conv_name: str, norm_name: str) -> None:
    conv, norm = network.get_submodule(conv_name), network.get_submodule(norm_name)
    after = _replacement_of(norm)
    if after is None or not isinstance(conv, nn.Conv2d) or not isinstance(norm, nn.BatchNorm2d):
        return
    network.set_submodule(conv_name, fuse_conv_bn_eval(conv, norm))
    network.set_submodule(norm_name, after)


def _replacement_of(norm: nn.Module) -> nn.Module | None:
    """Return a module that does what a BatchNorm module does besides normalizing; None for an unknown class."""
    if type(norm) is nn.BatchNorm2d:
        return nn.Identity()
    if type(norm) is BatchNormAct2d:
        return nn.Sequential(norm.drop, norm.act)
    return None
