"""How many images a second two models answer, in rounds in which each has its turn."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import quantiles
from time import perf_counter

import torch

from models.offline.running import Runner
from models.optimizing.report import Rate


def race(runners: Sequence[Runner], pixels: torch.Tensor, rounds: int) -> list[Rate]:
    """The rate of each, from pixels (N, 3, side, side) uint8 to answers, over that many rounds, two or more: what
    happens to the machine happens to both. Whoever is first in one round is last in the next."""
    seconds: list[list[float]] = [[] for _ in runners]
    for number in range(rounds):
        order = list(enumerate(runners))
        for place, runner in order if number % 2 else reversed(order):
            started_at = perf_counter()
            runner.answer(pixels, top_k=5)
            seconds[place].append(perf_counter() - started_at)
    return [_rate(times, len(pixels)) for times in seconds]


def _rate(seconds: Sequence[float], images: int) -> Rate:
    lower, median, upper = quantiles(sorted(images / taken for taken in seconds), n=4, method="inclusive")
    return Rate(median, lower, upper)
