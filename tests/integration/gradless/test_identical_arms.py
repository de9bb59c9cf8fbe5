"""Comparisons of arms that are identical claim a difference in time in one of a hundred at most."""

from __future__ import annotations

from collections import Counter

import pytest
import torch
from torch import nn

from gradless import compare

pytestmark = pytest.mark.slow

_COMPARISONS = 500


@pytest.mark.usefixtures("one_core")
def test_of_500_comparisons_of_identical_arms_five_at_most_claim_a_difference() -> None:
    """Without parameters that need gradients, the arm frozen runs the same as the arm grad, on a copy of its own."""
    network = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 64)).eval().requires_grad_(False)
    rows = torch.rand(32, 64)
    verdicts: Counter[str | None] = Counter()
    for _ in range(_COMPARISONS):
        comparison = compare(network, rows, arms=("grad", "frozen"), modules=False)
        verdicts[comparison.arms[1].against_grad] += 1
    assert verdicts.total() == _COMPARISONS
    assert verdicts["less"] + verdicts["more"] <= _COMPARISONS / 100, verdicts
