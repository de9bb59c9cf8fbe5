"""Run one forward at a time with the subject's lock held, and measure time, memory, output or a backward pass."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from statistics import median, quantiles
from time import perf_counter

import torch

from gradless.arms import Arm, Inputs, Subject, tensors_in
from gradless.errors import ComparisonCancelledError
from gradless.memory import recorded_peak, synchronize
from gradless.outputs import facts_of, max_abs_difference, on_the_cpu, top1_agreement
from gradless.records import (
    ArmName,
    ArmReport,
    Backward,
    ComparisonStage,
    ModuleRetained,
    OutputFacts,
    Peak,
    Progress,
    Retained,
    Spread,
    SweptArm,
    TrainFacts,
)
from gradless.retained import Saved, saved_by, saves_tensors
from gradless.sentences import time_verdict

_NO_HOOKS = "the hooks that observe it fail in its forward"
_OUT_OF_REACH = (
    "it saved tensors where the hooks that observe it do not reach, as in another thread or within hooks of its own"
)
_MEMORY_OUT_OF_REACH = "it may have allocated memory in another thread, which the profiler does not reach"


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
    """Results of one untimed forward. `saved` is None if it could not be observed, and `note` says why.

    `answer` are the tensors of the output on the CPU; `facts` is their autograd state.
    """

    saved: Saved | None
    note: str | None
    peak: Peak
    answer: list[torch.Tensor]
    facts: OutputFacts


class Measuring:
    """Runs forwards of one batch. Each method raises ComparisonCancelledError, and what a forward raises."""

    def __init__(self, subject: Subject, inputs: Inputs, progress: ComparisonProgress) -> None:
        self.subject = subject
        self.progress = progress
        self._inputs = inputs
        self._originals = [tensor.clone() for tensor in inputs.tensors]
        # Not the global one, which other threads of a server draw from.
        self._random = random.Random()  # noqa: S311 - an order of forwards
        self._order: list[Arm] = []

    def examine(self, arm: Arm, stage: ComparisonStage, *, observed: bool = True) -> Examination:
        """Run one forward and record its peak memory, its answer and, if `observed`, what it saved."""
        seen: list[tuple[list[torch.Tensor], OutputFacts, bool]] = []
        saved, note = None, arm.retained_note

        def forward() -> object:
            output = arm.forward(self._inputs)
            answer = tensors_in(self.subject.answer(output))
            seen.append(([tensor.detach() for tensor in answer], facts_of(answer), saves_tensors(answer)))
            return output

        self.progress.begin(stage)
        self._restore()
        subject = self.subject
        try:
            with subject.lock, recorded_peak(subject.device, arm.memory_note, subject.reset_peak) as recording:
                if observed and note is None:
                    saved = saved_by(forward, arm.network if arm.name == "served" else None)
                else:
                    # Dropped at once: its graph may be large.
                    forward()
        except RuntimeError:
            if saved is not None or not observed:
                raise
            # Such as transforms of torch.func. Whatever else failed fails again.
            self.progress.expect(1)
            return self.examine(arm, stage, observed=False)
        ((answer, facts, saves),) = seen
        peak = recording.peak
        if not observed:
            note = _NO_HOOKS
        elif saves and not saved and note is None:
            saved, note = None, _OUT_OF_REACH
            if subject.device.type == "cpu":
                # The profiler does not reach there either.
                peak = Peak(None, _MEMORY_OUT_OF_REACH)
        return Examination(saved, note, peak, [on_the_cpu(tensor) for tensor in answer], facts)

    def retained(self, arm: Arm, saved: Saved | None, stage: ComparisonStage) -> Retained | None:
        """Return what the arm makes autograd keep, given what its first forward `saved`.

        If anything, a second forward tells new storages from those that existed before.
        """
        if saved is None:
            return None
        if not saved.held:
            return Retained(0, 0)
        self.progress.expect(1)
        again = self.examine(arm, stage).saved
        return None if again is None else again.without(saved).retained

    def modules(self, arm: Arm, saved: Saved) -> tuple[ModuleRetained, ...]:
        """Return what each module of the arm makes autograd keep, given what a forward without their hooks `saved`."""
        self.progress.expect(1)
        self.progress.begin("modules")
        with self.subject.lock:
            watched = saved_by(lambda: arm.forward(self._inputs), arm.network, modules=True)
        return watched.without(saved).by_module(self.subject.network, self.subject.original_name)

    def round(self, arms: list[Arm], stage: ComparisonStage, number: int) -> dict[ArmName, float]:
        """Time one forward of each arm, in seconds.

        Pairs of rounds have a random order, which the second reverses: of two arms, each is first equally often, and
        no arm always follows the same one, whose caches and threads it would inherit.
        """
        if number % 2:
            self._order.reverse()
        else:
            self._order = self._random.sample(arms, len(arms))
        return {arm.name: self._seconds(arm, stage) for arm in self._order}

    def _restore(self) -> None:
        """Undo what forwards have written to their inputs, so that every forward has the same ones."""
        with torch.no_grad():
            for tensor, original in zip(self._inputs.tensors, self._originals, strict=True):
                tensor.copy_(original)

    def _seconds(self, arm: Arm, stage: ComparisonStage) -> float:
        """Time one forward from idle device to finished output. Waiting for the lock and freeing are excluded."""
        self.progress.begin(stage)
        self._restore()
        with self.subject.lock:
            synchronize(self.subject.device)
            started_at = perf_counter()
            output = arm.forward(self._inputs)
            synchronize(self.subject.device)
            seconds = perf_counter() - started_at
            # Free the graph, hundreds of megabytes, before another thread takes the lock and times its own forward.
            del output
        return seconds


def spread(seconds: Sequence[float]) -> Spread:
    """Return median and quartiles, all equal for a single round."""
    lower, upper = (quantiles(seconds, n=4, method="inclusive")[::2]) if len(seconds) > 1 else [*seconds] * 2
    return Spread(median(seconds), lower, upper)


@dataclass(slots=True)
class Measured:
    """Results of one arm, filled in as the comparison proceeds. `kept` is None if it could not be observed."""

    arm: Arm
    backward: Backward
    examination: Examination
    seconds: list[float] = field(default_factory=list)
    kept: Retained | None = None
    train: TrainFacts | None = None

    def swept(self) -> SweptArm:
        kept = None if self.kept is None else self.kept.bytes
        return SweptArm(self.arm.name, median(self.seconds), kept, self.examination.peak.bytes)

    def reported(self, reference: list[torch.Tensor], grad: Measured | None, *, classes: bool) -> ArmReport:
        """Return the arm's record. `reference` is the answer under inference_mode; `classes`: both are logits."""
        answer = self.examination.answer
        return ArmReport(
            arm=self.arm.name,
            seconds=spread(self.seconds),
            against_grad=None if grad is None or grad is self else time_verdict(self.seconds, grad.seconds),
            peak_bytes=self.examination.peak.bytes,
            peak_note=self.examination.peak.note,
            retained_bytes=None if self.kept is None else self.kept.bytes,
            retained_tensors=None if self.kept is None else self.kept.tensors,
            # The second forward may fail with hooks where the first did not.
            retained_note=self.examination.note or (_NO_HOOKS if self.kept is None else None),
            output=self.examination.facts,
            backward=self.backward,
            max_abs_difference=max_abs_difference(answer, reference),
            top1_agreement=top1_agreement(answer, reference) if classes else None,
            train=self.train,
        )
