"""One forward at a time, each in a turn of its own: with a clock, or with everything else that there is to see."""

from __future__ import annotations

from dataclasses import dataclass
from random import Random
from statistics import median, quantiles
from time import perf_counter

import torch

from gradless.arms import Arm
from gradless.outputs import facts_of
from gradless.peak import recorded_peak
from gradless.progress import ComparisonProgress
from gradless.records import ArmName, ComparisonStage, OutputFacts, Peak, Spread
from gradless.retained import Saved, saved_by
from gradless.subject import Inputs, Subject, answer_of
from models.hardware import cuda


@dataclass(frozen=True, slots=True)
class Look:
    """What is seen of a forward without a clock: what it saved, its peak, its answer, float32 on the CPU, and what they
    are to autograd."""

    saved: Saved
    peak: Peak
    answer: torch.Tensor
    facts: OutputFacts


class Measuring:
    """Runs forwards of one subject. Everything raises ComparisonAbandonedError, and what a forward raises."""

    def __init__(self, subject: Subject, course: ComparisonProgress) -> None:
        self.subject = subject
        self.course = course

    def look(self, arm: Arm, inputs: Inputs, stage: ComparisonStage) -> Look:
        seen: list[tuple[torch.Tensor, OutputFacts]] = []

        def forward() -> object:
            output = arm.forward(inputs)
            answer = answer_of(output)
            seen.append((answer.detach().float().cpu(), facts_of(answer)))
            return output

        self.course.begin(stage)
        with self.subject.turn, recorded_peak(self.subject.device, arm.memory_note) as recording:
            saved = saved_by(forward, arm.network)
        return Look(saved, recording.peak, *seen[0])

    def retained(self, arm: Arm, inputs: Inputs, saved: Saved, stage: ComparisonStage) -> Saved:
        """What the arm makes autograd keep, told from what was there before by a second forward if it saved anything
        in the first, `saved`."""
        if not saved:
            return saved
        self.course.expect(1)
        return self.look(arm, inputs, stage).saved.without(saved)

    def seconds(self, arm: Arm, inputs: Inputs, stage: ComparisonStage) -> float:
        """From idle device to output ready, without the wait for the turn and without freeing what was kept."""
        self.course.begin(stage)
        with self.subject.turn:
            cuda.synchronize(self.subject.device)
            started_at = perf_counter()
            output = arm.forward(inputs)
            cuda.synchronize(self.subject.device)
            seconds = perf_counter() - started_at
            # With the turn still held: freeing a graph of hundreds of megabytes is part of nobody else's time.
            del output
        return seconds

    def round(self, arms: list[Arm], inputs: Inputs, stage: ComparisonStage, number: int) -> dict[ArmName, float]:
        """Seconds of one forward of each arm, in another order each round: what the arm before leaves behind in caches
        and allocators is not always the same one's advantage."""
        shuffled = Random(number).sample(arms, len(arms))  # noqa: S311 - no secret, and the same each time
        return {arm.name: self.seconds(arm, inputs, stage) for arm in shuffled}


def spread(seconds: list[float]) -> Spread:
    """Median and quartiles, which for a single round are the same."""
    lower, upper = (quantiles(seconds, n=4, method="inclusive")[::2]) if len(seconds) > 1 else seconds * 2
    return Spread(median(seconds), lower, upper)
