"""Run one forward at a time with the subject's lock held, and measure time, memory, output or a backward pass."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from random import Random
from statistics import median, quantiles
from time import perf_counter

import torch
from torch import nn

from gradless.arms import Arm, Inputs, Subject, arm_with, copy_with_shared_weights
from gradless.errors import ComparisonCancelledError
from gradless.memory import recorded_peak
from gradless.records import (
    ArmName,
    Backward,
    ComparisonStage,
    OutputFacts,
    Peak,
    Progress,
    Spread,
    TrainFacts,
)
from gradless.retained import Saved, saved_by

_BATCHNORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)

# Relative to the largest logit: differences up to here come from the order of additions.
_TOLERANCE = 1e-5


@contextmanager
def isolate_failure(report: Callable[[str], object]) -> Iterator[None]:
    """Pass an exception of the block to `report` as text, and continue, so that the rest of the comparison still runs.

    ComparisonCancelledError is raised again.
    """
    try:
        yield
    except ComparisonCancelledError:
        raise
    except Exception as error:  # noqa: BLE001 - a network may raise anything
        report(f"{type(error).__name__}: {error}")


class ComparisonProgress:
    """Counts the forwards of a comparison. Before each, it checks `cancelled` and then calls `on_progress`."""

    def __init__(
        self,
        cancelled: Callable[[], bool] = lambda: False,
        on_progress: Callable[[Progress], object] = lambda _: None,
    ) -> None:
        self._cancelled = cancelled
        self._on_progress = on_progress
        self._done = self._total = 0

    def expect(self, forwards: int) -> None:
        """Add `forwards` to the total, or subtract if negative."""
        self._total += forwards

    def check(self) -> None:
        """Raise ComparisonCancelledError if the comparison was cancelled."""
        if self._cancelled():
            raise ComparisonCancelledError

    def begin(self, stage: ComparisonStage) -> None:
        """Report that the next forward is about to run. Raises ComparisonCancelledError."""
        self.check()
        self._on_progress(Progress(self._done, self._total, stage))
        self._done += 1


@dataclass(frozen=True, slots=True)
class Examination:
    """Results of one untimed forward. `answer` is float32 on the CPU; `facts` is its autograd state."""

    saved: Saved
    peak: Peak
    answer: torch.Tensor
    facts: OutputFacts


class Measuring:
    """Runs forwards of one subject. Each method raises ComparisonCancelledError, and what a forward raises."""

    def __init__(self, subject: Subject, progress: ComparisonProgress) -> None:
        self.subject = subject
        self.progress = progress

    def examine(self, arm: Arm, inputs: Inputs, stage: ComparisonStage) -> Examination:
        """Run one forward and record what it saved, its peak memory and its answer."""
        answers: list[tuple[torch.Tensor, OutputFacts]] = []

        def forward() -> object:
            output = arm.forward(inputs)
            answer = self.subject.answer(output)
            answers.append((answer.detach().float().cpu(), _facts_of(answer)))
            return output

        self.progress.begin(stage)
        subject = self.subject
        with subject.lock, recorded_peak(subject.device, arm.memory_note, subject.reset_peak) as recording:
            saved = saved_by(forward, arm.network)
        return Examination(saved, recording.peak, *answers[0])

    def retained(self, arm: Arm, inputs: Inputs, saved: Saved, stage: ComparisonStage) -> Saved:
        """Return what the arm makes autograd keep, given what its first forward `saved`.

        If that is not empty, a second forward tells new storages from those that existed before.
        """
        if not saved:
            return saved
        self.progress.expect(1)
        return self.examine(arm, inputs, stage).saved.without(saved)

    def round(self, arms: list[Arm], inputs: Inputs, stage: ComparisonStage, number: int) -> dict[ArmName, float]:
        """Time one forward of each arm, in seconds.

        The order differs from round to round, so that no arm always profits from the caches that another one leaves.
        """
        shuffled = Random(number).sample(arms, len(arms))  # noqa: S311 - not for security; reproducible
        return {arm.name: self._seconds(arm, inputs, stage) for arm in shuffled}

    def _seconds(self, arm: Arm, inputs: Inputs, stage: ComparisonStage) -> float:
        """Time one forward from idle device to finished output. Waiting for the lock and freeing are excluded."""
        self.progress.begin(stage)
        with self.subject.lock:
            self._synchronize()
            started_at = perf_counter()
            output = arm.forward(inputs)
            self._synchronize()
            seconds = perf_counter() - started_at
            # Free the graph, hundreds of megabytes, before another thread takes the lock and times its own forward.
            del output
        return seconds

    def _synchronize(self) -> None:
        if self.subject.device.type == "cuda":
            torch.cuda.synchronize(self.subject.device)


def spread(seconds: list[float]) -> Spread:
    """Return median and quartiles, all equal for a single round."""
    lower, upper = (quantiles(seconds, n=4, method="inclusive")[::2]) if len(seconds) > 1 else seconds * 2
    return Spread(median(seconds), lower, upper)


def max_abs_difference(answer: torch.Tensor, reference: torch.Tensor) -> float | None:
    """Return the largest absolute difference of any element, or None if it is not finite."""
    difference = (answer - reference).abs().max()
    return difference.item() if difference.isfinite() else None


def top1_agreement(logits: torch.Tensor, reference: torch.Tensor) -> float:
    """Return the share of rows, 0..1, whose largest element has the same index in both."""
    agree = logits.flatten(1).argmax(1) == reference.flatten(1).argmax(1)
    return agree.float().mean().item()


def _facts_of(answer: torch.Tensor) -> OutputFacts:
    try:
        answer._version  # noqa: B018, SLF001 - it has no public name
        version_counter_readable = True
    except RuntimeError:
        version_counter_readable = False
    return OutputFacts(
        requires_grad=answer.requires_grad,
        grad_fn=answer.grad_fn.name() if answer.grad_fn is not None else None,
        is_inference=answer.is_inference(),
        version_counter_readable=version_counter_readable,
    )


def try_backward(arm: Arm, subject: Subject, inputs: Inputs) -> Backward:
    """Run the arm on a copy of its network, and a backward pass from the sum of its answer. Gradients are discarded."""
    served = arm.name == "served" or arm.network is None
    try:
        copied = arm if served or arm.network is None else arm_with(arm.name, copy_with_shared_weights(arm.network))
        answer = subject.answer(copied.forward(inputs))
        # The served network cannot be copied: a backward pass through its graph would leave gradients in it.
        if not served or not answer.requires_grad:
            with torch.enable_grad():
                torch.autograd.backward(answer.sum())
    except Exception as error:  # noqa: BLE001 - the error is the result
        return Backward(works=False, error=str(error))
    return Backward(works=True, error=None)


def train_facts(arm: Arm, subject: Subject, inputs: Inputs) -> TrainFacts:
    """Compare the arm `train`, which has run at least once, with the network that it was copied from."""
    if arm.network is None:  # pragma: no cover - this arm has a network
        raise ValueError("the arm has no network")
    before, after = _batchnorm_buffers(subject.network), _batchnorm_buffers(arm.network)
    one, other = (subject.answer(arm.forward(inputs)) for _ in range(2))
    return TrainFacts(
        batchnorm_buffers=len(after),
        batchnorm_buffers_moved=sum(not torch.equal(before[name], buffer) for name, buffer in after.items()),
        runs_agree=bool((one - other).abs().max() <= _TOLERANCE * one.abs().max()),
    )


def _batchnorm_buffers(network: nn.Module) -> dict[str, torch.Tensor]:
    """Return running mean, running variance and batch count of each BatchNorm, by name."""
    return {
        f"{name}.{buffer_name}": buffer
        for name, module in network.named_modules()
        if isinstance(module, _BATCHNORMS)
        for buffer_name, buffer in module.named_buffers(recurse=False)
    }
