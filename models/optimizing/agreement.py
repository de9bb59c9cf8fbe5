"""Two models' answers to the same images, compared as they come: memory does not grow with their number."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from models.inference.batch_item import ItemOutput
from models.interface.errors import JobError
from models.optimizing.report import Accuracy, Agreement

_TOP = 5

# Of a class told by a folder's name: indices of the labels that have it, which may be several.
Truth = Mapping[str, frozenset[int]]


def truth_of(files: Sequence[str], folder: Path, labels: Sequence[str]) -> Truth | None:
    """The classes of all `files`, when `folder` has a folder for each class, named as its label; else None."""
    indices: dict[str, set[int]] = {}
    for index, label in enumerate(labels):
        indices.setdefault(label, set()).add(index)
    told = {file: Path(file).relative_to(folder).parts[0] for file in files}
    if not all(name in indices for name in told.values()):
        return None
    return {file: frozenset(indices[name]) for file, name in told.items()}


class Tally:
    """Sums over images."""

    def __init__(self, truth: Truth | None) -> None:
        self._truth = truth
        self._images = 0
        self._agreed = 0
        self._change_sum = 0.0
        self._change_most = 0.0
        self._cosine_sum = 0.0
        self._comparable = True
        self._right = np.zeros((2, 2), dtype=np.int64)

    def add(self, path: str, before: ItemOutput, after: ItemOutput) -> None:
        """The answers to one image, with the probabilities of all classes."""
        old, new = _by_class(before), _by_class(after)
        change = float(np.abs(new - old).max())
        self._images += 1
        self._agreed += int(_first(before) == _first(after))
        self._change_sum += change
        self._change_most = max(self._change_most, change)
        self._comparable &= before.features.shape == after.features.shape
        if self._comparable:
            self._cosine_sum += _cosine(before.features, after.features)
        if self._truth is not None:
            self._right += [_rights(answer, self._truth[path]) for answer in (before, after)]

    def agreement(self) -> Agreement:
        """Of all that was added. Raises JobError when that is nothing."""
        if not self._images:
            raise JobError("none of the images could be read, and there is nothing to compare")
        return Agreement(
            self._images,
            self._agreed / self._images,
            self._change_sum / self._images,
            self._change_most,
            self._cosine_sum / self._images if self._comparable else None,
        )

    def accuracies(self) -> tuple[Accuracy | None, Accuracy | None]:
        """Before and after; None where no classes were told."""
        if self._truth is None:
            return None, None
        before, after = (Accuracy(*(float(count) / self._images for count in right)) for right in self._right)
        return before, after


def _by_class(answer: ItemOutput) -> NDArray[np.float64]:
    """Probabilities in the order of the classes."""
    indices, probabilities = _ranked(answer)
    found = np.zeros(len(indices))
    found[indices] = probabilities
    return found


def _ranked(answer: ItemOutput) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    if answer.indices is None or answer.probabilities is None:
        raise ValueError("an answer without classes")
    return answer.indices, answer.probabilities


def _first(answer: ItemOutput) -> int:
    return int(_ranked(answer)[0][0])


def _rights(answer: ItemOutput, classes: frozenset[int]) -> tuple[bool, bool]:
    """Whether one of `classes` is the first, and whether one is among the first five."""
    first = _ranked(answer)[0][:_TOP].tolist()
    return first[0] in classes, not classes.isdisjoint(first)


def _cosine(one: NDArray[np.float32], other: NDArray[np.float32]) -> float:
    length = float(np.linalg.norm(one)) * float(np.linalg.norm(other))
    # Vectors of zeros, as ReLUs can give, are alike.
    return float(one @ other) / length if length else float(np.array_equal(one, other))
