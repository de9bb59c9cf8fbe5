"""One comparison: run one batch through every arm and measure time, memory and output."""

from __future__ import annotations

from contextlib import AbstractContextManager
from time import perf_counter

import torch

from gradless.arms import arm_of
from gradless.budget import Prediction, Trial, run_trial
from gradless.measuring import Measuring
from gradless.outputs import try_backward
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
from gradless.subject import Arm, Inputs, Subject
from gradless.sweep import run_sweep, sweep_forwards
from gradless.training import train_facts

# Images for checks that need no large batch: the backward pass, and whether two runs agree.
_FEW = 2


class ComparisonRun:
    """Runs the forwards of one comparison, holding the subject's lock for one forward at a time."""

    def __init__(self, subject: Subject, options: ComparisonOptions, progress: ComparisonProgress) -> None:
        self._subject = subject
        self._options = options
        self._progress = progress
        self._measuring = Measuring(subject, progress)
        self._started_at = perf_counter()
        self._left_out: list[LeftOut] = []

    def run(self, origin: Origin) -> Comparison:
        options = self._options
        free_bytes = self._subject.memory.free_bytes(self._subject.device)
        arms, prediction = self._try_arms()
        prediction.check(options, free_bytes)
        self._progress.expect(len(arms) * (2 + options.iterations) + sweep_forwards(arms, options))
        inputs = self._subject.batch(options.batch_size)
        measured = self._examine(arms, inputs)
        reference = self._reference(measured, inputs)
        iterations = self._time(measured, inputs)
        self._examine_again(measured, inputs)
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
                sweep=run_sweep(self._measuring, [each.arm for each in measured], options, point),
                largest_batch=prediction.largest_batch(
                    {each.arm.name: each.examination.peak.bytes for each in measured}, options.batch_size, free_bytes
                ),
            ),
        )

    def _try_arms(self) -> tuple[list[Arm], Prediction]:
        """Return the arms that can run, and a prediction from a small batch of each."""
        arms: list[Arm] = []
        trials: dict[ArmName, Trial] = {}
        for name in self._options.arms:
            self._progress.check()
            with self._left_out_on_failure(name):
                arm = arm_of(name, self._subject)
                trials[name] = run_trial(arm, self._subject)
                arms.append(arm)
        one = self._subject.batch(1)
        return arms, Prediction(trials, one.nbytes, self._subject.weight_bytes)

    def _examine(self, arms: list[Arm], inputs: Inputs) -> list[Measured]:
        """Examine a forward of each arm, which also warms it up for the timed rounds."""
        measured: list[Measured] = []
        for arm in arms:
            with self._left_out_on_failure(arm.name):
                self._progress.begin("warming up")
                with self._subject.lock:
                    backward = try_backward(arm, self._subject, inputs.first(_FEW))
                measured.append(Measured(arm, backward, self._measuring.examine(arm, inputs, "memory")))
        return measured

    def _left_out_on_failure(self, name: ArmName) -> AbstractContextManager[None]:
        """Leave the arm out if the block raises: a network may fail in train mode, or when it is copied."""
        return isolate_failure(lambda reason: self._left_out.append(LeftOut(name, reason)))

    def _reference(self, measured: list[Measured], inputs: Inputs) -> torch.Tensor:
        """Return the answer under inference_mode, also if that arm is not one of the options."""
        for each in measured:
            if each.arm.name == "inference_mode":
                return each.examination.answer
        self._progress.expect(1)
        return self._measuring.examine(arm_of("inference_mode", self._subject), inputs, "memory").answer

    def _time(self, measured: list[Measured], inputs: Inputs) -> int:
        """Time rounds over all arms until the options' number or time is reached. Return the number of rounds."""
        arms = [each.arm for each in measured]
        for number in range(self._options.iterations):
            began_at = perf_counter()
            seconds = self._measuring.round(arms, inputs, "timing", number)
            for each in measured:
                each.seconds.append(seconds[each.arm.name])
            # Another round, and the forwards after it, must also fit.
            ended_at = perf_counter()
            if ended_at + 1.5 * (ended_at - began_at) > self._started_at + self._options.seconds:
                self._progress.expect(-len(arms) * (self._options.iterations - number - 1))
                return number + 1
        return self._options.iterations

    def _examine_again(self, measured: list[Measured], inputs: Inputs) -> None:
        """Run what needs a second forward: telling new storages from older ones, and the effects of train mode."""
        for each in measured:
            arm = each.arm
            stage: ComparisonStage = "modules" if arm.name == "grad" and self._options.modules else "memory"
            each.kept = self._measuring.retained(arm, inputs, each.examination.saved, stage)
            if arm.name == "train":
                self._progress.expect(1)
                self._progress.begin("memory")
                with self._subject.lock:
                    each.train = train_facts(arm, self._subject, inputs.first(_FEW))
