"""BatchNorm in eval mode is a scale and a shift by channel: folded into the convolution before it, it costs nothing.

Which BatchNorm follows which convolution is seen, not guessed: hooks watch one forward, and a pair counts when the
very tensor that a convolution gave is what a BatchNorm took, and nobody else did: autograd's graph of that forward says
how often a tensor was used. The folded network is then held to the unfolded one.
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

# Largest difference of an output, relative to the largest output, that folding may make.
TOLERANCE = 1e-4


def folded(network: Network, example: torch.Tensor) -> Network:
    """A copy of `network` (float32, eval mode) with BatchNorms folded, or a plain copy where outputs on `example`,
    (N, 3, H, W) float32, would differ by more than TOLERANCE. The copy is on the CPU: float32 is float32 there, where
    CUDA's convolutions round to TF32, and differ by more than that from themselves."""
    plain = copy.deepcopy(network).cpu()
    with torch.no_grad():
        expected = plain(example)
        fused = copy.deepcopy(plain)
        pairs = _conv_bn_pairs(fused, example)
        for conv, norm in pairs:
            _fold(fused, conv, norm)
        found = fused(example)
    for before, after in zip(expected, found, strict=True):
        # No logits where there are no classes.
        if before.numel() and (after - before).abs().max() > TOLERANCE * before.abs().max().clamp(min=1):
            _log.warning("BatchNorms stay as they are: folded, the outputs would differ")
            return plain
    return fused


def _conv_bn_pairs(network: nn.Module, example: torch.Tensor) -> list[tuple[str, str]]:
    """Names of (convolution, BatchNorm) that follow one another, each used once in a forward, and the convolution's
    output by nothing else."""
    # By autograd's nodes, which are kept, so that none stands for two tensors; a tensor changed in place has another.
    outputs: dict[Any, str] = {}
    inputs: dict[Any, str] = {}
    calls: Counter[str] = Counter()

    def watch(name: str, module: nn.Module) -> torch.utils.hooks.RemovableHandle:
        def see(_: nn.Module, args: tuple[Any, ...], output: Any) -> None:
            calls[name] += 1
            if isinstance(module, nn.Conv2d):
                outputs[output.grad_fn] = name
            else:
                inputs[args[0].grad_fn] = name

        return module.register_forward_hook(see)

    watched = [watch(name, m) for name, m in network.named_modules() if isinstance(m, nn.Conv2d | nn.BatchNorm2d)]
    with torch.enable_grad():
        # Gradients to the images give every tensor a node, whatever parameters are frozen.
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
    """How many operations took what each node of autograd's graph made, on the way to `outputs`."""
    uses: Counter[Any] = Counter()
    seen = {output.grad_fn for output in outputs}
    waiting = list(seen)
    while waiting:
        node = waiting.pop()
        for taken, _ in () if node is None else node.next_functions:
            uses[taken] += 1
            if taken not in seen:
                seen.add(taken)
                waiting.append(taken)
    return uses


def _fold(network: nn.Module, conv_name: str, norm_name: str) -> None:
    conv, norm = network.get_submodule(conv_name), network.get_submodule(norm_name)
    after = _what_remains(norm)
    if after is None or not isinstance(conv, nn.Conv2d) or not isinstance(norm, nn.BatchNorm2d):
        return
    network.set_submodule(conv_name, fuse_conv_bn_eval(conv, norm))
    network.set_submodule(norm_name, after)


def _what_remains(norm: nn.Module) -> nn.Module | None:
    """What a BatchNorm module does besides normalising; None for one that is not known here."""
    if type(norm) is nn.BatchNorm2d:
        return nn.Identity()
    if type(norm) is BatchNormAct2d:
        return nn.Sequential(norm.drop, norm.act)
    return None
