"""Repeat the comparison at other batch sizes, with fewer rounds, to show how time and memory grow."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from statistics import median
from time import perf_counter
from typing import NamedTuple

from gradless.measuring import Measuring
from gradless.progress import isolate_failure
from gradless.records import ComparisonOptions, SweepPoint, SweptArm
from gradless.subject import Arm, Inputs

_ROUNDS = 3


def sweep_forwards(arms: list[Arm], options: ComparisonOptions) -> int:
    """Return the least number of forwards of a complete sweep."""
    return len(set(options.sweep) - {options.batch_size}) * len(arms) * (_rounds(options) + 1)


class SweepResult(NamedTuple):
    """`points` by rising batch size; `failures` maps each size at which an arm failed to the reason."""

    points: tuple[SweepPoint, ...]
    failures: Mapping[int, str]


def run_sweep(measuring: Measuring, arms: list[Arm], options: ComparisonOptions, known: SweepPoint) -> SweepResult:
    """Measure each batch size of the sweep while its time lasts. `known`, already measured, is not repeated."""
    points: list[SweepPoint] = []
    failures: dict[int, str] = {}
    started_at, seconds_per_image = perf_counter(), 0.0
    for size in sorted(set(options.sweep)):
        if size == known.batch_size:
            points.append(known)
            continue
        began_at = perf_counter()
        if seconds_per_image and began_at - started_at + size * seconds_per_image > options.seconds:
            break
        with isolate_failure(partial(failures.__setitem__, size)):
            points.append(SweepPoint(size, _measure(measuring, arms, measuring.subject.batch(size), _rounds(options))))
            seconds_per_image = (perf_counter() - began_at) / size
    return SweepResult(tuple(points), failures)


def _rounds(options: ComparisonOptions) -> int:
    return min(_ROUNDS, options.iterations)


def _measure(measuring: Measuring, arms: list[Arm], inputs: Inputs, rounds: int) -> tuple[SweptArm, ...]:
    examined = {arm.name: measuring.examine(arm, inputs, "sweep") for arm in arms}
    timed = [measuring.round(arms, inputs, "sweep", number) for number in range(rounds)]
    return tuple(
        SweptArm(
            arm.name,
            median(seconds[arm.name] for seconds in timed),
            measuring.retained(arm, inputs, examined[arm.name].saved, "sweep").retained.bytes,
            examined[arm.name].peak.bytes,
        )
        for arm in arms
    )
