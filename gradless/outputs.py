"""What an arm's output is to autograd, how far it is from another's, and whether a backward pass starts from it."""

from __future__ import annotations

import torch

from gradless import copies
from gradless.arms import Arm, over
from gradless.records import Backward, OutputFacts
from gradless.subject import Inputs, answer_of


def facts_of(answer: torch.Tensor) -> OutputFacts:
    return OutputFacts(
        requires_grad=answer.requires_grad,
        grad_fn=answer.grad_fn.name() if answer.grad_fn is not None else None,
        is_inference=answer.is_inference(),
        version_counter_readable=_has_version_counter(answer),
    )


def max_abs_difference(answer: torch.Tensor, reference: torch.Tensor) -> float | None:
    """The largest of any element; None where it is no number."""
    difference = (answer - reference).abs().max()
    return difference.item() if difference.isfinite() else None


def top1_agreement(logits: torch.Tensor, reference: torch.Tensor) -> float:
    """The share of rows, 0..1, whose largest element is at the same place."""
    agree = logits.flatten(1).argmax(1) == reference.flatten(1).argmax(1)
    return agree.float().mean().item()


def tried_backward(arm: Arm, inputs: Inputs) -> Backward:
    """Run the arm on a copy, and a backward pass from the sum of its answer. What it computes is thrown away."""
    try:
        answer = answer_of(_on_a_copy(arm).forward(inputs))
        # There is no copy of what serves: if it recorded a graph, a backward pass would leave gradients in it.
        if arm.name != "served" or not answer.requires_grad:
            with torch.enable_grad():
                torch.autograd.backward(answer.sum())
    except Exception as error:  # noqa: BLE001 - whatever it is, it is the answer
        return Backward(works=False, error=str(error))
    return Backward(works=True, error=None)


def _on_a_copy(arm: Arm) -> Arm:
    if arm.name == "served" or arm.network is None:
        return arm
    return over(arm.name, copies.with_shared_weights(arm.network))


def _has_version_counter(tensor: torch.Tensor) -> bool:
    try:
        tensor._version  # noqa: B018, SLF001 - read to see whether it can be; it has no public name
    except RuntimeError:
        return False
    return True
