"""Examine outputs: their autograd state, differences between them, a backward pass, and the effects of train mode."""

from __future__ import annotations

import torch
from torch import nn

from gradless.arms import Arm, Inputs, Subject, arm_of, tensors_in
from gradless.records import Backward, OutputFacts, TrainFacts
from gradless.retained import graph_of

_BATCHNORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)
_DROPOUTS = (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout, nn.FeatureAlphaDropout)

# Relative to the largest element: differences up to here come from the order of additions.
_TOLERANCE = 1e-5


def max_abs_difference(answer: list[torch.Tensor], reference: list[torch.Tensor]) -> float | None:
    """Return the largest absolute difference of any element; None if it is not finite or the shapes differ."""
    pairs = _pairs(answer, reference)
    if pairs is None:
        return None
    differences = torch.stack([(one - other).abs().max() for one, other in pairs if one.numel()] or [torch.zeros(())])
    # A maximum of NaN is NaN.
    largest = differences.max()
    return largest.item() if largest.isfinite() else None


def _agree(answer: list[torch.Tensor], reference: list[torch.Tensor]) -> bool:
    """Return True if no element differs by more than rounding. NaN and infinities agree with themselves."""
    pairs = _pairs(answer, reference)
    return pairs is not None and all(
        torch.allclose(one, other, rtol=0, atol=_TOLERANCE * _largest(one), equal_nan=True) for one, other in pairs
    )


def _largest(tensor: torch.Tensor) -> float:
    finite = tensor[tensor.isfinite()]
    return finite.abs().max().item() if finite.numel() else 0.0


def _pairs(answer: list[torch.Tensor], reference: list[torch.Tensor]) -> list[tuple[torch.Tensor, torch.Tensor]] | None:
    """Return the tensors of both answers in pairs, at least float32, or None if they cannot be compared."""
    if [tensor.shape for tensor in answer] != [tensor.shape for tensor in reference]:
        return None
    both = [*answer, *reference]
    if any(tensor.is_meta or tensor.layout is not torch.strided for tensor in both):
        return None
    wide = [tensor.to(torch.promote_types(tensor.dtype, torch.float32)) for tensor in both]
    return list(zip(wide[: len(answer)], wide[len(answer) :], strict=True))


def top1_agreement(answer: list[torch.Tensor], reference: list[torch.Tensor]) -> float | None:
    """Return the share of rows of the logits, 0..1, whose largest element has the same index in both."""
    logits, others = answer[0], reference[0]
    if logits.shape != others.shape:
        return None
    return (logits.flatten(1).argmax(1) == others.flatten(1).argmax(1)).float().mean().item()


def on_the_cpu(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.detach() if tensor.is_meta else tensor.detach().cpu()


def facts_of(answer: list[torch.Tensor]) -> OutputFacts:
    """Return the autograd state of the first tensor that requires grad, or else of the first tensor."""
    tensor = next((tensor for tensor in answer if tensor.requires_grad), answer[0])
    try:
        tensor._version  # noqa: B018, SLF001 - it has no public name
        version_counter_readable = True
    except RuntimeError:
        version_counter_readable = False
    return OutputFacts(
        requires_grad=tensor.requires_grad,
        grad_fn=tensor.grad_fn.name() if tensor.grad_fn is not None else None,
        is_inference=tensor.is_inference(),
        version_counter_readable=version_counter_readable,
    )


def try_backward(arm: Arm, subject: Subject, inputs: Inputs) -> Backward:
    """Run the arm, and a backward pass from all tensors of its answer that require grad. Gradients are discarded.

    Raises what the forward raises: that is no failure of the backward pass.
    """
    answer = tensors_in(subject.answer(arm.forward(inputs)))
    try:
        with torch.enable_grad():
            _run_backward([tensor for tensor in answer if tensor.requires_grad] or answer[:1])
    except Exception as error:  # noqa: BLE001 - the error is the result
        return Backward(works=False, error=str(error))
    return Backward(works=True, error=None)


def _run_backward(answer: list[torch.Tensor]) -> None:
    # Ones, except that PyTorch cannot fill sparse tensors.
    gradients = [torch.ones_like(each) if each.layout is torch.strided else each.detach() for each in answer]
    leaves = [node.variable for node in graph_of(answer) if hasattr(node, "variable")]
    leaves += [tensor for tensor in answer if tensor.requires_grad and tensor.is_leaf]
    try:
        if leaves:
            # Unlike backward(), this leaves no gradient in leaves that are the caller's.
            torch.autograd.grad(answer, leaves, gradients, allow_unused=True)
            return
    except RuntimeError as error:
        if "use_reentrant" not in str(error):
            raise
    # Reentrant checkpointing refuses grad(). The leaves inside it are parameters of the arm's copy.
    before = [(leaf, leaf.grad) for leaf in leaves]
    try:
        for leaf in leaves:
            leaf.grad = None
        torch.autograd.backward(answer, gradients)
    finally:
        for leaf, gradient in before:
            leaf.grad = gradient


def train_facts(arm: Arm, subject: Subject, inputs: Inputs) -> TrainFacts:
    """Compare the arm `train`, which has run once, with the network that it was copied from."""
    if arm.network is None:  # pragma: no cover - this arm has a network
        raise ValueError("the arm has no network")
    before, after = _batchnorm_buffers(subject.network), _batchnorm_buffers(arm.network)
    return TrainFacts(
        batchnorm_buffers=len(after),
        batchnorm_buffers_moved=sum(not torch.equal(before[name], buffer) for name, buffer in after.items()),
        runs_agree=_two_runs_agree(arm, subject, inputs),
        eval_runs_agree=_two_runs_agree(arm_of("no_grad", subject), subject, inputs),
        dropouts=sum(isinstance(module, _DROPOUTS) for module in arm.network.modules()),
    )


def _two_runs_agree(arm: Arm, subject: Subject, inputs: Inputs) -> bool:
    one, other = ([on_the_cpu(each) for each in tensors_in(subject.answer(arm.forward(inputs)))] for _ in range(2))
    return _agree(one, other)


def _batchnorm_buffers(network: nn.Module) -> dict[str, torch.Tensor]:
    """Return running mean, running variance and batch count of each BatchNorm, by name."""
    return {
        f"{name}.{buffer_name}": buffer
        for name, module in network.named_modules()
        if isinstance(module, _BATCHNORMS)
        for buffer_name, buffer in module.named_buffers(recurse=False)
    }
