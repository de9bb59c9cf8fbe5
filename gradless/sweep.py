"""The comparison again at other batch sizes, with fewer rounds: how time and memory grow with the batch."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from statistics import median
from time import perf_counter
from typing import NamedTuple

from gradless.arms import Arm
from gradless.measuring import Measuring
from gradless.progress import isolate_failure
from gradless.records import ComparisonOptions, SweepPoint, SweptArm
from gradless.subject import Inputs

_ROUNDS = 3


def sweep_forwards(arms: list[Arm], options: ComparisonOptions) -> int:
    """How many a sweep has at least, if time allows."""
    return len(set(options.sweep) - {options.batch_size}) * len(arms) * (_rounds(options) + 1)


class Swept(NamedTuple):
    """`points`, the smallest batch first; `failures`: the sizes that an arm could not be run at, and why."""

    points: tuple[SweepPoint, ...]
    failures: Mapping[int, str]


def swept(measuring: Measuring, arms: list[Arm], options: ComparisonOptions, known: SweepPoint) -> Swept:
    """A point for each batch size of the sweep, as long as time is left for one; `known` is not measured again."""
    points: list[SweepPoint] = []
    failures: dict[int, str] = {}
    started_at, seconds_an_image = perf_counter(), 0.0
    for size in sorted(set(options.sweep)):
        if size == known.batch_size:
            points.append(known)
            continue
        began_at = perf_counter()
        if seconds_an_image and began_at - started_at + size * seconds_an_image > options.seconds:
            break
        with isolate_failure(partial(failures.__setitem__, size)):
            points.append(SweepPoint(size, _measured(measuring, arms, measuring.subject.batch(size), _rounds(options))))
            seconds_an_image = (perf_counter() - began_at) / size
    return Swept(tuple(points), failures)


def _rounds(options: ComparisonOptions) -> int:
    return min(_ROUNDS, options.iterations)


def _measured(measuring: Measuring, arms: list[Arm], inputs: Inputs, rounds: int) -> tuple[SweptArm, ...]:
    looks = {arm.name: measuring.look(arm, inputs, "sweep") for arm in arms}
    timed = [measuring.round(arms, inputs, "sweep", number) for number in range(rounds)]
    return tuple(
        SweptArm(
            arm.name,
            median(seconds[arm.name] for seconds in timed),
            measuring.retained(arm, inputs, looks[arm.name].saved, "sweep").retained.bytes,
            looks[arm.name].peak.bytes,
        )
        for arm in arms
    )
