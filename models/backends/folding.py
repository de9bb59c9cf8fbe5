"""BatchNorm in eval mode is a scale and a shift by channel: folded into the convolution before it, it costs nothing.

Which BatchNorm follows which convolution is seen, not guessed: hooks watch one forward, and a pair counts when the
very tensor that a convolution gave is what a BatchNorm took. The folded network is then held to the unfolded one.
"""

from __future__ import annotations

import copy
import logging
from typing import Any

import torch
from timm.layers.norm_act import BatchNormAct2d
from torch import nn
from torch.nn.utils import fuse_conv_bn_eval

from models.network import Network

_log = logging.getLogger(__name__)

# Largest difference of an output, relative to the largest output, that folding may make.
TOLERANCE = 1e-4


def folded(network: Network, example: torch.Tensor) -> Network:
    """A copy of `network` (float32, eval mode) with BatchNorms folded, or a plain copy where outputs on `example`,
    (N, 3, H, W) float32, would differ by more than TOLERANCE."""
    plain = copy.deepcopy(network)
    with torch.no_grad():
        expected = plain(example)
        fused = copy.deepcopy(network)
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
    """Names of (convolution, BatchNorm) that follow one another, each used once in a forward."""
    # Tensors are kept, inputs as well, so that no address stands for two of them.
    outputs: dict[int, tuple[str, torch.Tensor]] = {}
    inputs: dict[int, list[tuple[str, torch.Tensor]]] = {}
    calls: dict[str, int] = {}

    def watch(name: str, module: nn.Module) -> torch.utils.hooks.RemovableHandle:
        def see(_: nn.Module, args: tuple[Any, ...], output: Any) -> None:
            calls[name] = calls.get(name, 0) + 1
            if isinstance(module, nn.Conv2d):
                outputs[id(output)] = (name, output)
            else:
                inputs.setdefault(id(args[0]), []).append((name, args[0]))

        return module.register_forward_hook(see)

    watched = [watch(name, m) for name, m in network.named_modules() if isinstance(m, nn.Conv2d | nn.BatchNorm2d)]
    network(example)
    for handle in watched:
        handle.remove()
    return [
        (conv, norms[0][0])
        for address, (conv, _) in outputs.items()
        if len(norms := inputs.get(address, [])) == 1 and calls[conv] == calls[norms[0][0]] == 1
    ]


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
