"""Compare the arms on any network."""

from __future__ import annotations

import torch
from torch import nn

from gradless.comparison_run import ComparisonRun
from gradless.peak import prepare_profiler
from gradless.progress import ComparisonProgress
from gradless.records import ARMS, ArmName, Comparison, ComparisonOptions
from gradless.report import Origin
from gradless.subject import Subject, subject_with

_UNSERVED: tuple[ArmName, ...] = tuple(name for name in ARMS if name != "served")


def compare(
    network: nn.Module,
    images: torch.Tensor,
    *,
    arms: tuple[ArmName, ...] = _UNSERVED,
    iterations: int = 5,
    sweep: tuple[int, ...] = (),
    modules: bool = True,
    seconds: float = 60.0,
) -> Comparison:
    """Compare the arms on any network in eval mode and one batch of its inputs, (N, …), on the network's device.

    The network is not changed. A compiled network is not supported: the hooks would compile it again.
    Raises ValueError for a network in train mode, ComparisonTooLargeError, and what a forward raises under
    inference_mode.
    """
    if any(module.training for module in network.modules()):
        raise ValueError("the network is in train mode, where comparing it would change it; call eval() first")
    options = ComparisonOptions(
        arms=arms,
        batch_size=len(images),
        iterations=iterations,
        sweep=sweep,
        modules=modules,
        seconds=seconds,
    )
    kind = type(network).__name__
    origin = Origin(kind, "", kind, str(images.device), str(images.dtype).removeprefix("torch."), "none")
    return run_comparison(subject_with(network, images), options, ComparisonProgress(), origin)


def run_comparison(
    subject: Subject, options: ComparisonOptions, progress: ComparisonProgress, origin: Origin
) -> Comparison:
    """Run one comparison in any autograd mode of the calling thread, and leave no trace of it.

    inference_mode is left, because enable_grad records nothing in it. The random state, which Dropout advances, is
    restored, and cached memory is released.
    """
    prepare_profiler()
    device = subject.device
    try:
        with torch.inference_mode(False), torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            return ComparisonRun(subject, options, progress).run(origin)
    finally:
        subject.memory.release(device)
