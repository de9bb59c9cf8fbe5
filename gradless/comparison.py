"""Compare the arms: run one batch through every arm, and repeat it at other batch sizes."""

from __future__ import annotations

from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from functools import partial
from statistics import median
from time import perf_counter

import torch
from torch import nn

from gradless.arms import Arm, Inputs, Subject, arm_of, subject_with
from gradless.budget import Prediction, Trial, run_trial
from gradless.measuring import (
    ComparisonProgress,
    Examination,
    Measuring,
    isolate_failure,
    max_abs_difference,
    spread,
    top1_agreement,
    train_facts,
    try_backward,
)
from gradless.memory import prepare_profiler
from gradless.records import (
    ARMS,
    ArmName,
    ArmReport,
    Backward,
    Comparison,
    ComparisonOptions,
    ComparisonStage,
    LeftOut,
    SweepPoint,
    SweptArm,
    TrainFacts,
)
from gradless.retained import Saved
from gradless.sentences import sentences

_UNSERVED: tuple[ArmName, ...] = tuple(name for name in ARMS if name != "served")

# Images for checks that need no large batch: the backward pass, and whether two runs agree.
_FEW = 2

_SWEEP_ROUNDS = 3


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
        arms=arms, batch_size=len(images), iterations=iterations, sweep=sweep, modules=modules, seconds=seconds
    )
    return run_comparison(subject_with(network, images), options, ComparisonProgress())


def run_comparison(subject: Subject, options: ComparisonOptions, progress: ComparisonProgress) -> Comparison:
    """Run one comparison in any autograd mode of the calling thread, and leave no trace of it.

    inference_mode is left, because enable_grad records nothing in it. The random state, which Dropout advances, is
    restored, and cached memory is released.
    """
    prepare_profiler()
    device = subject.device
    try:
        with torch.inference_mode(False), torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            return _Run(subject, options, progress).run()
    finally:
        subject.release(device)


@dataclass(slots=True)
class _Measured:
    """Results of one arm, filled in as the comparison proceeds. `kept` is what its forward makes autograd keep."""

    arm: Arm
    backward: Backward
    examination: Examination
    seconds: list[float] = field(default_factory=list)
    kept: Saved = field(default_factory=Saved)
    train: TrainFacts | None = None

    def swept(self) -> SweptArm:
        return SweptArm(self.arm.name, median(self.seconds), self.kept.retained.bytes, self.examination.peak.bytes)

    def reported(self, reference: torch.Tensor, *, classes: bool) -> ArmReport:
        """Return the arm's record. `reference` is the answer under inference_mode; `classes`: both are logits."""
        answer, retained = self.examination.answer, self.kept.retained
        return ArmReport(
            arm=self.arm.name,
            seconds=spread(self.seconds),
            peak_bytes=self.examination.peak.bytes,
            peak_note=self.examination.peak.note,
            retained_bytes=retained.bytes,
            retained_tensors=retained.tensors,
            output=self.examination.facts,
            backward=self.backward,
            max_abs_difference=max_abs_difference(answer, reference),
            top1_agreement=top1_agreement(answer, reference) if classes else None,
            train=self.train,
        )


class _Run:
    """Runs the forwards of one comparison, holding the subject's lock for one forward at a time."""

    def __init__(self, subject: Subject, options: ComparisonOptions, progress: ComparisonProgress) -> None:
        self._subject = subject
        self._options = options
        self._progress = progress
        self._measuring = Measuring(subject, progress)
        self._started_at = perf_counter()
        self._left_out: list[LeftOut] = []
        self._failed_sizes: dict[int, str] = {}
        self._sweep_rounds = min(_SWEEP_ROUNDS, options.iterations)

    def run(self) -> Comparison:
        subject, options = self._subject, self._options
        free_bytes = subject.free_bytes(subject.device)
        arms, prediction = self._try_arms()
        prediction.check(options, free_bytes)
        swept = len(set(options.sweep) - {options.batch_size})
        self._progress.expect(len(arms) * (2 + options.iterations + swept * (self._sweep_rounds + 1)))
        inputs = subject.batch(options.batch_size)
        measured = self._examine(arms, inputs)
        reference = self._reference(measured, inputs)
        rounds = self._time(measured, inputs)
        self._examine_again(measured, inputs)
        sweep = self._sweep([each.arm for each in measured], tuple(each.swept() for each in measured))
        peaks = {each.arm.name: each.examination.peak.bytes for each in measured}
        kept_by_grad = next((each.kept for each in measured if each.arm.name == "grad" and options.modules), Saved())
        comparison = Comparison(
            model=subject.model,
            fingerprint=subject.fingerprint,
            architecture=subject.architecture,
            device=str(subject.device),
            dtype=subject.dtype,
            backend=subject.backend,
            batch_size=options.batch_size,
            iterations=rounds,
            input=subject.input,
            torch=torch.__version__,
            arms=tuple(each.reported(reference, classes=subject.classes) for each in measured),
            left_out=tuple(self._left_out),
            modules=kept_by_grad.by_module(subject.network, subject.original_name),
            sweep=tuple(sweep),
            largest_batch=prediction.largest_batch(peaks, options.batch_size, free_bytes),
            sentences=(),
        )
        return replace(comparison, sentences=tuple(sentences(comparison, options, self._failed_sizes)))

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
        return arms, Prediction(trials, self._subject.batch(1).nbytes, self._subject.weight_bytes)

    def _examine(self, arms: list[Arm], inputs: Inputs) -> list[_Measured]:
        """Examine a forward of each arm, which also warms it up for the timed rounds."""
        measured: list[_Measured] = []
        for arm in arms:
            with self._left_out_on_failure(arm.name):
                self._progress.begin("warming up")
                with self._subject.lock:
                    backward = try_backward(arm, self._subject, inputs.first(_FEW))
                measured.append(_Measured(arm, backward, self._measuring.examine(arm, inputs, "memory")))
        return measured

    def _left_out_on_failure(self, name: ArmName) -> AbstractContextManager[None]:
        """Leave the arm out if the block raises: a network may fail in train mode, or when it is copied."""
        return isolate_failure(lambda reason: self._left_out.append(LeftOut(name, reason)))

    def _reference(self, measured: list[_Measured], inputs: Inputs) -> torch.Tensor:
        """Return the answer under inference_mode, also if that arm is not one of the options."""
        for each in measured:
            if each.arm.name == "inference_mode":
                return each.examination.answer
        self._progress.expect(1)
        return self._measuring.examine(arm_of("inference_mode", self._subject), inputs, "memory").answer

    def _time(self, measured: list[_Measured], inputs: Inputs) -> int:
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

    def _examine_again(self, measured: list[_Measured], inputs: Inputs) -> None:
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

    def _sweep(self, arms: list[Arm], known: tuple[SweptArm, ...]) -> list[SweepPoint]:
        """Measure each batch size of the sweep, smallest first, while its time lasts.

        `known`, at the batch size of the comparison, is not measured again.
        """
        points: list[SweepPoint] = []
        started_at, seconds_per_image = perf_counter(), 0.0
        for size in sorted(set(self._options.sweep)):
            if size == self._options.batch_size:
                points.append(SweepPoint(size, known))
                continue
            began_at = perf_counter()
            if seconds_per_image and began_at - started_at + size * seconds_per_image > self._options.seconds:
                break
            with isolate_failure(partial(self._failed_sizes.__setitem__, size)):
                points.append(SweepPoint(size, self._swept(arms, self._subject.batch(size))))
                seconds_per_image = (perf_counter() - began_at) / size
        return points

    def _swept(self, arms: list[Arm], inputs: Inputs) -> tuple[SweptArm, ...]:
        measuring = self._measuring
        examined = {arm.name: measuring.examine(arm, inputs, "sweep") for arm in arms}
        timed = [measuring.round(arms, inputs, "sweep", number) for number in range(self._sweep_rounds)]
        return tuple(
            SweptArm(
                arm.name,
                median(seconds[arm.name] for seconds in timed),
                measuring.retained(arm, inputs, examined[arm.name].saved, "sweep").retained.bytes,
                examined[arm.name].peak.bytes,
            )
            for arm in arms
        )
