"""Examine an arm's output: its autograd state, its difference from another output, and a backward pass from it."""

from __future__ import annotations

import torch

from gradless.arms import arm_with, copy_with_shared_weights
from gradless.records import Backward, OutputFacts
from gradless.subject import Arm, Inputs, Subject


def facts_of(answer: torch.Tensor) -> OutputFacts:
    return OutputFacts(
        requires_grad=answer.requires_grad,
        grad_fn=answer.grad_fn.name() if answer.grad_fn is not None else None,
        is_inference=answer.is_inference(),
        version_counter_readable=_has_version_counter(answer),
    )


def max_abs_difference(answer: torch.Tensor, reference: torch.Tensor) -> float | None:
    """Return the largest absolute difference of any element, or None if it is not finite."""
    difference = (answer - reference).abs().max()
    return difference.item() if difference.isfinite() else None


def top1_agreement(logits: torch.Tensor, reference: torch.Tensor) -> float:
    """Return the share of rows, 0..1, whose largest element has the same index in both."""
    agree = logits.flatten(1).argmax(1) == reference.flatten(1).argmax(1)
    return agree.float().mean().item()


def try_backward(arm: Arm, subject: Subject, inputs: Inputs) -> Backward:
    """Run the arm on a copy of its network, and a backward pass from the sum of its answer. Gradients are discarded."""
    try:
        answer = subject.answer(_with_copied_network(arm).forward(inputs))
        # The served network cannot be copied: a backward pass through its graph would leave gradients in it.
        if arm.name != "served" or not answer.requires_grad:
            with torch.enable_grad():
                torch.autograd.backward(answer.sum())
    except Exception as error:  # noqa: BLE001 - the error is the result
        return Backward(works=False, error=str(error))
    return Backward(works=True, error=None)


def _with_copied_network(arm: Arm) -> Arm:
    if arm.name == "served" or arm.network is None:
        return arm
    return arm_with(arm.name, copy_with_shared_weights(arm.network))


def _has_version_counter(tensor: torch.Tensor) -> bool:
    try:
        tensor._version  # noqa: B018, SLF001 - it has no public name
    except RuntimeError:
        return False
    return True
