"""Run labelled files through the engine and count the answers."""

from __future__ import annotations

from collections.abc import Callable, Generator
from dataclasses import dataclass
from pathlib import Path

from models.inference.image_job import ItemOutput
from models.loading.load import LoadedModel
from models.offline import files, reading, truth
from models.offline.evaluating import TOP, Evaluation, Tally
from models.offline.reading import Reading
from models.offline.running import Runner
from models.offline.truth import Truth
from models.serving.model_instance import ServingOptions


@dataclass(frozen=True, slots=True)
class Step:
    """One batch: the number of files, and path and reason of each one without an answer."""

    files: int
    faults: tuple[tuple[str, str], ...]


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
    ) -> None:
        """`labels` is a file of paths and labels; without it each folder in `folder` is a class.

        `workers` returns the number of worker processes for a number of files. Raises StartError, including JobError.
        """
        named = truth.by_folder(folder) if labels is None else truth.by_list(labels, folder)
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
            answers = iter(self._runner.answer(batch.pixels, top_k=TOP))
            faults: list[tuple[str, str]] = []
            for place, path in enumerate(batch.paths):
                answer = batch.faults[place] if place in batch.faults else next(answers)
                if isinstance(answer, ItemOutput) and answer.indices is not None and answer.probabilities is not None:
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
