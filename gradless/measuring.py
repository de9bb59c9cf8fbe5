"""Run one forward at a time with the subject's lock held: either timed, or examined for memory and output."""

from __future__ import annotations

from dataclasses import dataclass
from random import Random
from statistics import median, quantiles
from time import perf_counter

import torch

from gradless.device_memory import synchronize
from gradless.outputs import facts_of
from gradless.peak import recorded_peak
from gradless.progress import ComparisonProgress
from gradless.records import ArmName, ComparisonStage, OutputFacts, Peak, Spread
from gradless.retained import Saved, saved_by
from gradless.subject import Arm, Inputs, Subject


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
            answers.append((answer.detach().float().cpu(), facts_of(answer)))
            return output

        self.progress.begin(stage)
        subject = self.subject
        with subject.lock, recorded_peak(subject.device, arm.memory_note, subject.memory.reset_peak) as recording:
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

    def seconds(self, arm: Arm, inputs: Inputs, stage: ComparisonStage) -> float:
        """Time one forward from idle device to finished output. Waiting for the lock and freeing are excluded."""
        self.progress.begin(stage)
        with self.subject.lock:
            synchronize(self.subject.device)
            started_at = perf_counter()
            output = arm.forward(inputs)
            synchronize(self.subject.device)
            seconds = perf_counter() - started_at
            # Free the graph, hundreds of megabytes, before another thread takes the lock and times its own forward.
            del output
        return seconds

    def round(self, arms: list[Arm], inputs: Inputs, stage: ComparisonStage, number: int) -> dict[ArmName, float]:
        """Time one forward of each arm, in seconds.

        The order differs from round to round, so that no arm always profits from the caches that another one leaves.
        """
        shuffled = Random(number).sample(arms, len(arms))  # noqa: S311 - not for security; reproducible
        return {arm.name: self.seconds(arm, inputs, stage) for arm in shuffled}


def spread(seconds: list[float]) -> Spread:
    """Return median and quartiles, all equal for a single round."""
    lower, upper = (quantiles(seconds, n=4, method="inclusive")[::2]) if len(seconds) > 1 else seconds * 2
    return Spread(median(seconds), lower, upper)
