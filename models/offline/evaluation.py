"""Measure a model's accuracy on labelled images. Answers are counted as they come, in little memory."""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from models.inference.image_job import ItemOutput
from models.loading.load import LoadedModel
from models.offline import files, reading, truth
from models.offline.reading import Reading
from models.offline.running import Runner, Step
from models.offline.truth import Truth
from models.serving.model_instance import ServingOptions

# Classes per answer, for the usual top-5 accuracy.
TOP = 5

_BINS = 15
_CONFUSIONS = 10
_MISTAKES = 24


@dataclass(frozen=True, slots=True)
class ClassScore:
    """Results of one true class. `images` is the number of its images; `first` of them have it as the top class,
    `among_five` in the top five. `taken` is the number of images of any class that were predicted as it."""

    index: int
    label: str
    images: int
    first: int
    among_five: int
    taken: int


@dataclass(frozen=True, slots=True)
class Confusion:
    """`images` of the `of` images of class `truth` were predicted as `taken_for`."""

    truth: str
    taken_for: str
    images: int
    of: int


@dataclass(frozen=True, slots=True)
class Bin:
    """Images whose top class has a probability in (lower, upper]: their number, mean probability and accuracy."""

    lower: float
    upper: float
    images: int
    confidence: float
    accuracy: float


@dataclass(frozen=True, slots=True)
class Mistake:
    """An image predicted as `taken_for` with this `probability`. `rank` and `truth_probability` are those of its true
    class; None if that is not in the top five."""

    path: str
    truth: str
    taken_for: str
    probability: float
    rank: int | None
    truth_probability: float | None


@dataclass(frozen=True, slots=True)
class Evaluation:
    """Results of an evaluation. Shares are 0..1.

    `calibration_error` is the expected calibration error with 15 bins of equal width: the mean over images of
    |accuracy - mean probability| of their bin (Guo et al., On Calibration of Modern Neural Networks, 2017). `classes`
    are the true classes of the images, worst first.
    """

    model: str
    fingerprint: str
    images: int
    without_answer: int
    top1: float
    top5: float
    calibration_error: float
    classes: list[ClassScore]
    confusions: list[Confusion]
    bins: list[Bin]
    mistakes: list[Mistake]


class Tally:
    """Counts the answers of a model with these labels."""

    def __init__(self, labels: Sequence[str]) -> None:
        self._labels = labels
        self._images, self._first, self._among_five, self._taken = (
            np.zeros(len(labels), dtype=np.int64) for _ in range(4)
        )
        self._pairs: Counter[tuple[int, int]] = Counter()
        # Per bin: images, correct ones, sum of probabilities.
        self._bins = np.zeros((_BINS, 3))
        self._mistakes: list[tuple[float, str, int, Mistake]] = []

    def add(self, path: str, truth: int, indices: NDArray[np.int64], probabilities: NDArray[np.float32]) -> None:
        """Add one image: its true class, and its top classes with their probabilities, most probable first."""
        taken_for, probability = int(indices[0]), float(probabilities[0])
        found = np.flatnonzero(indices == truth)
        self._images[truth] += 1
        self._taken[taken_for] += 1
        self._first[truth] += taken_for == truth
        self._among_five[truth] += len(found) > 0
        place = min(max(int(np.ceil(probability * _BINS)) - 1, 0), _BINS - 1)
        self._bins[place] += (1, taken_for == truth, probability)
        if taken_for != truth:
            self._pairs[truth, taken_for] += 1
            rank, truth_probability = (
                (int(found[0]) + 1, float(probabilities[found[0]])) if len(found) else (None, None)
            )
            mistake = Mistake(path, self._labels[truth], self._labels[taken_for], probability, rank, truth_probability)
            push = heapq.heappush if len(self._mistakes) < _MISTAKES else heapq.heappushpop
            push(self._mistakes, (probability, path, truth, mistake))

    def evaluation(self, model: str, fingerprint: str, *, without_answer: int) -> Evaluation:
        """Return the results. Shares are 0 if there is no image."""
        images = int(self._images.sum())
        return Evaluation(
            model=model,
            fingerprint=fingerprint,
            images=images,
            without_answer=without_answer,
            top1=int(self._first.sum()) / max(images, 1),
            top5=int(self._among_five.sum()) / max(images, 1),
            calibration_error=float(np.abs(self._bins[:, 1] - self._bins[:, 2]).sum()) / max(images, 1),
            classes=self._classes(),
            confusions=self._confusions(),
            bins=[
                Bin(number / _BINS, (number + 1) / _BINS, int(count), total / max(count, 1), right / max(count, 1))
                for number, (count, right, total) in enumerate(self._bins.tolist())
            ],
            mistakes=[mistake for *_, mistake in sorted(self._mistakes, reverse=True)],
        )

    def _classes(self) -> list[ClassScore]:
        counts = np.stack((self._images, self._first, self._among_five, self._taken), axis=1).tolist()
        scores = [
            ClassScore(index, label, *of_class)
            for index, (label, of_class) in enumerate(zip(self._labels, counts, strict=True))
            if of_class[0]
        ]
        return sorted(scores, key=lambda score: (score.first / score.images, score.index))

    def _confusions(self) -> list[Confusion]:
        most = sorted(self._pairs.items(), key=lambda pair: (-pair[1], pair[0]))[:_CONFUSIONS]
        return [
            Confusion(self._labels[truth], self._labels[taken], count, int(self._images[truth]))
            for (truth, taken), count in most
        ]


class EvaluationJob:
    """Loads the model on construction, as the server does. Not thread-safe. `truth` are the true classes."""

    truth: Truth

    def __init__(
        self,
        folder: Path,
        labels: Path | None,
        options: ServingOptions,
        *,
        batch_size: int,
        workers: Callable[[int], int],
        max_bytes: int,
        ignore_unknown: bool,
        report: Callable[[str], None] = lambda _: None,
    ) -> None:
        """`labels` is a file of paths and labels; without it each folder in `folder` is a class. `report` is as of
        models.offline.files.find.

        `workers` returns the number of worker processes for a number of files. Raises StartError, including JobError.
        """
        named = truth.by_folder(folder, report) if labels is None else truth.by_list(labels, folder)
        self._workers = workers(len(named))
        if self._workers:
            reading.start_fork_server()

        def check(model: LoadedModel) -> None:
            self.truth = truth.of(named, model.labels)
            self.truth.check(ignore_unknown=ignore_unknown)

        self._runner = Runner(options, batch_size=batch_size, check=check)
        self._batch_size = batch_size
        model = self._runner.model
        self._reading = Reading(model.transform, options.limits, max_bytes)
        self._tally = Tally(model.labels)
        self._without_answer = 0

    def steps(self) -> Generator[Step, None, None]:
        """Process one batch per step. Raises JobError if a worker dies, and ForwardError."""
        classes = self.truth.classes
        for batch in reading.batches(list(classes), self._reading, batch_size=self._batch_size, workers=self._workers):
            faults: list[tuple[str, str]] = []
            for path, answer in batch.with_answers(self._runner.answer(batch.pixels, top_k=TOP)):
                if isinstance(answer, ItemOutput):
                    self._tally.add(path, classes[path], answer.indices, answer.probabilities)
                else:
                    faults.append((files.name(path), str(answer)))
            self._without_answer += len(faults)
            yield Step(len(batch.paths), tuple(faults))

    def evaluation(self) -> Evaluation:
        """Return the results of the images counted so far."""
        model = self._runner.model
        return self._tally.evaluation(model.name, model.fingerprint, without_answer=self._without_answer)

    def close(self) -> None:
        """End the backend's threads."""
        self._runner.close()
