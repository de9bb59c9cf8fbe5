"""Turn measurements into the records of the report."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from statistics import median
from typing import NamedTuple

import torch

from gradless.measuring import Examination, spread
from gradless.outputs import max_abs_difference, top1_agreement
from gradless.records import (
    ArmReport,
    Backward,
    Comparison,
    ComparisonOptions,
    LargestBatch,
    LeftOut,
    ModuleRetained,
    SweptArm,
    TrainFacts,
)
from gradless.retained import Saved
from gradless.sentences import ReportFacts, sentences
from gradless.subject import Arm, Subject
from gradless.sweep import SweepResult


class Origin(NamedTuple):
    """Names of the network that is compared, and of what runs it."""

    model: str
    fingerprint: str
    architecture: str
    device: str
    dtype: str
    backend: str


@dataclass(slots=True)
class Measured:
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


@dataclass(frozen=True, slots=True, kw_only=True)
class Findings:
    """Results of all arms. `reference` is the answer under inference_mode, `iterations` the number of timed rounds."""

    measured: list[Measured]
    reference: torch.Tensor
    iterations: int
    left_out: tuple[LeftOut, ...]
    sweep: SweepResult
    largest_batch: LargestBatch | None


def report(origin: Origin, subject: Subject, options: ComparisonOptions, findings: Findings) -> Comparison:
    arms = tuple(each.reported(findings.reference, classes=subject.classes) for each in findings.measured)
    modules = _modules(subject, findings.measured) if options.modules else ()
    points, failures = findings.sweep
    swept_sizes = {point.batch_size for point in points}
    return Comparison(
        **origin._asdict(),
        batch_size=options.batch_size,
        iterations=findings.iterations,
        input=subject.input,
        torch=torch.__version__,
        arms=arms,
        left_out=findings.left_out,
        modules=modules,
        sweep=points,
        largest_batch=findings.largest_batch,
        sentences=sentences(
            ReportFacts(
                arms={arm.arm: arm for arm in arms},
                left_out=findings.left_out,
                modules=modules,
                largest_batch=findings.largest_batch,
                rounds_requested=options.iterations,
                rounds=findings.iterations,
                sizes_skipped=tuple(sorted(set(options.sweep) - swept_sizes - set(failures))),
                sizes_failed=failures,
            )
        ),
    )


def _modules(subject: Subject, measured: Iterable[Measured]) -> tuple[ModuleRetained, ...]:
    for each in measured:
        if each.arm.name == "grad":
            return each.kept.by_module(subject.network, subject.original_name)
    return ()
