"""From what was measured to the records that the lens answers with."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from statistics import median
from typing import NamedTuple

import torch

from gradless.arms import Arm
from gradless.measuring import Look, spread
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
from gradless.sentences import Told, sentences
from gradless.subject import Subject
from gradless.sweep import Swept
from models.inference.engine import Engine


class Origin(NamedTuple):
    """Whose network it is."""

    model: str
    fingerprint: str
    architecture: str
    device: str
    dtype: str
    backend: str


@dataclass(slots=True)
class Measured:
    """What is known of an arm, which grows as the comparison goes on. `kept` is what is not known to be older than
    the forward."""

    arm: Arm
    backward: Backward
    look: Look
    seconds: list[float] = field(default_factory=list)
    kept: Saved = field(default_factory=Saved)
    train: TrainFacts | None = None

    def swept(self) -> SweptArm:
        return SweptArm(self.arm.name, median(self.seconds), self.kept.retained.bytes, self.look.peak.bytes)

    def reported(self, reference: torch.Tensor, *, classes: bool) -> ArmReport:
        """`reference` is the answer under inference_mode; `classes`: the numbers of both are of classes."""
        answer, retained = self.look.answer, self.kept.retained
        return ArmReport(
            arm=self.arm.name,
            seconds=spread(self.seconds),
            peak_bytes=self.look.peak.bytes,
            peak_note=self.look.peak.note,
            retained_bytes=retained.bytes,
            retained_tensors=retained.tensors,
            output=self.look.facts,
            backward=self.backward,
            max_abs_difference=max_abs_difference(answer, reference),
            top1_agreement=top1_agreement(answer, reference) if classes else None,
            train=self.train,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Findings:
    """Of all arms. `reference` is the answer under inference_mode, `iterations` the rounds that were timed."""

    measured: list[Measured]
    reference: torch.Tensor
    iterations: int
    left_out: tuple[LeftOut, ...]
    sweep: Swept
    largest_batch: LargestBatch | None


def origin_of(engine: Engine) -> Origin:
    model, placement = engine.model, engine.model.placement
    dtype = placement.dtype_name
    return Origin(model.name, model.fingerprint, model.architecture, str(placement.device), dtype, placement.backend)


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
            Told(
                arms={arm.arm: arm for arm in arms},
                left_out=findings.left_out,
                modules=modules,
                largest_batch=findings.largest_batch,
                asked=options.iterations,
                iterations=findings.iterations,
                sizes_left_out=tuple(sorted(set(options.sweep) - swept_sizes - set(failures))),
                sizes_failed=failures,
            )
        ),
    )


def _modules(subject: Subject, measured: Iterable[Measured]) -> tuple[ModuleRetained, ...]:
    for each in measured:
        if each.arm.name == "grad":
            return each.kept.by_module(subject.network, subject.original_name)
    return ()
