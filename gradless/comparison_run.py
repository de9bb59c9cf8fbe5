"""The lens: one batch through every arm, for its time, its memory, and what its output is to autograd."""

from __future__ import annotations

from contextlib import AbstractContextManager
from time import perf_counter

import torch

from gradless.arms import Arm, arm_of
from gradless.budget import Prediction, Trial, tried
from gradless.measuring import Measuring
from gradless.outputs import tried_backward
from gradless.progress import ComparisonProgress, isolate_failure
from gradless.records import (
    ArmName,
    Comparison,
    ComparisonOptions,
    ComparisonStage,
    LeftOut,
    SweepPoint,
)
from gradless.report import Findings, Measured, Origin, report
from gradless.subject import Inputs, Subject
from gradless.sweep import sweep_forwards, swept
from gradless.training import train_facts
from models.hardware import memory

# Two images show whether a backward pass works, and whether two runs agree, as well as many.
_FEW = 2


class ComparisonRun:
    """One comparison. Its forwards take the subject's turn, one at a time."""

    def __init__(self, subject: Subject, options: ComparisonOptions, course: ComparisonProgress) -> None:
        self._subject = subject
        self._options = options
        self._course = course
        self._measuring = Measuring(subject, course)
        self._started_at = perf_counter()
        self._left_out: list[LeftOut] = []

    def run(self, origin: Origin) -> Comparison:
        options = self._options
        free_bytes = memory.free_bytes(self._subject.device)
        arms, prediction = self._tried()
        prediction.check(options, free_bytes)
        self._course.expect(len(arms) * (2 + options.iterations) + sweep_forwards(arms, options))
        inputs = self._subject.batch(options.batch_size)
        measured = self._looked_at(arms, inputs)
        reference = self._reference(measured, inputs)
        iterations = self._time(measured, inputs)
        self._look_again(measured, inputs)
        point = SweepPoint(options.batch_size, tuple(arm.swept() for arm in measured))
        return report(
            origin,
            self._subject,
            options,
            Findings(
                measured=measured,
                reference=reference,
                iterations=iterations,
                left_out=tuple(self._left_out),
                sweep=swept(self._measuring, [each.arm for each in measured], options, point),
                largest_batch=prediction.largest_batch(
                    {each.arm.name: each.look.peak.bytes for each in measured}, options.batch_size, free_bytes
                ),
            ),
        )

    def _tried(self) -> tuple[list[Arm], Prediction]:
        """The arms that can be run at all, and what one image costs in each."""
        arms: list[Arm] = []
        trials: dict[ArmName, Trial] = {}
        for name in self._options.arms:
            self._course.check()
            with self._left_out_on_failure(name):
                arm = arm_of(name, self._subject)
                trials[name] = tried(arm, self._subject)
                arms.append(arm)
        one = self._subject.batch(1)
        return arms, Prediction(trials, one.nbytes, self._subject.weight_bytes)

    def _looked_at(self, arms: list[Arm], inputs: Inputs) -> list[Measured]:
        """Which warms them up for the rounds as well."""
        measured: list[Measured] = []
        for arm in arms:
            with self._left_out_on_failure(arm.name):
                self._course.begin("warming up")
                with self._subject.turn:
                    backward = tried_backward(arm, inputs.first(_FEW))
                measured.append(Measured(arm, backward, self._measuring.look(arm, inputs, "memory")))
        return measured

    def _left_out_on_failure(self, name: ArmName) -> AbstractContextManager[None]:
        """A network may run in eval mode alone, or not be copied."""
        return isolate_failure(lambda words: self._left_out.append(LeftOut(name, words)))

    def _reference(self, measured: list[Measured], inputs: Inputs) -> torch.Tensor:
        """The answer under inference_mode, also where that arm was not asked for."""
        for each in measured:
            if each.arm.name == "inference_mode":
                return each.look.answer
        self._course.expect(1)
        return self._measuring.look(arm_of("inference_mode", self._subject), inputs, "memory").answer

    def _time(self, measured: list[Measured], inputs: Inputs) -> int:
        """Rounds over all arms, as many as were asked for or fit into the time; how many those were."""
        arms = [each.arm for each in measured]
        for number in range(self._options.iterations):
            began_at = perf_counter()
            seconds = self._measuring.round(arms, inputs, "timing", number)
            for each in measured:
                each.seconds.append(seconds[each.arm.name])
            # One more, and what comes after, must fit as well.
            ended_at = perf_counter()
            if ended_at + 1.5 * (ended_at - began_at) > self._started_at + self._options.seconds:
                self._course.expect(-len(arms) * (self._options.iterations - number - 1))
                return number + 1
        return self._options.iterations

    def _look_again(self, measured: list[Measured], inputs: Inputs) -> None:
        """What an arm keeps is known once it has run twice, and what train mode does as well."""
        for each in measured:
            arm = each.arm
            stage: ComparisonStage = "modules" if arm.name == "grad" and self._options.modules else "memory"
            each.kept = self._measuring.retained(arm, inputs, each.look.saved, stage)
            if arm.name == "train":
                self._course.expect(1)
                self._course.begin("memory")
                with self._subject.turn:
                    each.train = train_facts(arm, self._subject.network, inputs.first(_FEW))
