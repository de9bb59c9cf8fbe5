"""Predict what a comparison needs from a small batch, before any large one runs.

The same figures give the largest batch that fits into free memory.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from statistics import median
from time import perf_counter

import torch

from gradless.arms import Arm, Subject, tensors_in
from gradless.errors import ComparisonTooLargeError
from gradless.memory import recorded_peak, synchronize
from gradless.records import ArmName, ComparisonOptions, LargestBatch, SweepPoint

# Share of free memory that a comparison may use; serving continues meanwhile.
ALLOWED_SHARE = 3 / 4

# A comparison that would take longer than this with a single round is refused.
MAX_SECONDS = 600.0

# A comparison with a forward longer than this is refused: requests to the same model wait for it.
MAX_FORWARD_SECONDS = 30.0

# Forwards of each arm that every comparison needs: one examined, one timed, and for some arms one more.
_FORWARDS = 2.5

# A trial's time is the median of so many forwards after a warm-up, or of fewer if they are slow.
_TRIAL_FORWARDS = 5
_TRIAL_SECONDS = 2.0

# Arms that represent a forward without gradients; the first one that was measured is used.
_WITHOUT_GRADIENTS: tuple[ArmName, ...] = ("inference_mode", "no_grad", "set_grad_enabled_false", "frozen")


@dataclass(frozen=True, slots=True)
class Trial:
    """A forward of a small batch. `peak_bytes` is None if PyTorch cannot measure it; `seconds` is a median.

    `answer_bytes` are those of its answer where answers are compared, in at least 4 bytes an element."""

    batch_size: int
    peak_bytes: int | None
    seconds: float
    answer_bytes: int = 0


def run_trial(arm: Arm, subject: Subject, check: Callable[[], object]) -> Trial:
    """Run the smallest batch that the arm can run. If it can run none, raise what its forward raises.

    `check` is called before each forward, and may raise to end the comparison.
    """
    *smaller, last = subject.trial_sizes
    for size in smaller:
        try:
            return _run_trial(arm, subject, size, check)
        except Exception:  # noqa: BLE001, S112 - the last size raises it
            continue
    return _run_trial(arm, subject, last, check)


def _run_trial(arm: Arm, subject: Subject, size: int, check: Callable[[], object]) -> Trial:
    inputs = subject.batch(size)
    check()
    with subject.lock:
        # The first forward of a shape initializes what later ones reuse.
        arm.forward(inputs)
    check()
    with subject.lock, recorded_peak(subject.device, arm.memory_note, subject.reset_peak) as recording:
        answer = tensors_in(subject.answer(arm.forward(inputs)))
    answer_bytes = _answer_bytes(answer) if subject.device.type == "cpu" else 0
    del answer
    seconds: list[float] = []
    while len(seconds) < _TRIAL_FORWARDS and sum(seconds) < _TRIAL_SECONDS:
        check()
        with subject.lock:
            started_at = perf_counter()
            arm.forward(inputs)
            synchronize(subject.device)
            seconds.append(perf_counter() - started_at)
    return Trial(size, recording.peak.bytes, median(seconds), answer_bytes)


def _answer_bytes(answer: list[torch.Tensor]) -> int:
    dense = [tensor for tensor in answer if tensor.layout is torch.strided]
    return sum(tensor.numel() * max(4, tensor.element_size()) for tensor in dense)


@dataclass(frozen=True, slots=True)
class Prediction:
    """Predicts memory and time from the trials of the arms, the bytes of one input, and those of the weights."""

    trials: Mapping[ArmName, Trial]
    input_bytes: int
    weight_bytes: int

    def needed_bytes(self, batch_size: int) -> float:
        """Predict the peak. Activations, inputs and answers grow with the batch.

        The answers of all arms are held, and comparing two takes up to three more. The copies in train mode, of the
        batch and of the sweep, add the weights twice, and the gradients of the backward pass add them again.
        """
        trials = self.trials.values()
        peak = max(((trial.peak_bytes or 0) / trial.batch_size for trial in trials), default=0.0)
        answer = max((trial.answer_bytes / trial.batch_size for trial in trials), default=0.0)
        return batch_size * (peak + self.input_bytes + (len(trials) + 3) * answer) + 3 * self.weight_bytes

    def forward_seconds(self, batch_size: int) -> float:
        """Predict the time of the slowest arm's forward."""
        return batch_size * max((trial.seconds / trial.batch_size for trial in self.trials.values()), default=0.0)

    def least_seconds(self, batch_size: int) -> float:
        """Predict the time of a comparison with a single round."""
        return batch_size * _FORWARDS * sum(trial.seconds / trial.batch_size for trial in self.trials.values())

    def check(self, options: ComparisonOptions, free_bytes: int | None) -> None:
        """Raise ComparisonTooLargeError if it would exceed its share of `free_bytes`, if known, or take too long."""
        largest = max(options.batch_size, *options.sweep) if options.sweep else options.batch_size
        if free_bytes is not None:
            allowed_bytes = int(ALLOWED_SHARE * free_bytes)
            if (needed_bytes := int(self.needed_bytes(largest))) > allowed_bytes:
                raise ComparisonTooLargeError(largest, "bytes", needed_bytes, allowed_bytes)
        if options.force:
            return
        if (seconds := self.forward_seconds(largest)) > MAX_FORWARD_SECONDS:
            raise ComparisonTooLargeError(largest, "forward seconds", seconds, MAX_FORWARD_SECONDS)
        if (seconds := self.least_seconds(options.batch_size)) > MAX_SECONDS:
            raise ComparisonTooLargeError(options.batch_size, "seconds", seconds, MAX_SECONDS)

    def largest_batch(self, points: Iterable[SweepPoint], free_bytes: int | None) -> LargestBatch | None:
        """Return the largest batches that fit into `free_bytes`, given the peaks of the arms at some batch sizes.

        The largest size at which both arms were measured counts, and a smaller one of each: every image adds the same.
        None if the free memory is unknown, or no forward with gradients or none without was measured.
        """
        if free_bytes is None:
            return None
        for point in sorted(points, key=lambda point: point.batch_size, reverse=True):
            known = {arm.arm: arm.peak_bytes for arm in point.arms if arm.peak_bytes is not None}
            without = next((arm for arm in _WITHOUT_GRADIENTS if arm in known), None)
            if "grad" in known and without is not None:
                grad_fits = self._fitting("grad", known["grad"], point.batch_size, free_bytes)
                without_fits = self._fitting(without, known[without], point.batch_size, free_bytes)
                if grad_fits is not None and without_fits is not None:
                    return LargestBatch(free_bytes, _two_digits(grad_fits), _two_digits(without_fits))
        return None

    def _fitting(self, arm: ArmName, peak_bytes: int, batch_size: int, free_bytes: int) -> float | None:
        """Extrapolate from the peaks of the trial and of `batch_size`. None if an image needs no memory."""
        trial, fixed, per_image = self.trials[arm], 0.0, peak_bytes / batch_size
        if batch_size > trial.batch_size and trial.peak_bytes is not None:
            per_image = (peak_bytes - trial.peak_bytes) / (batch_size - trial.batch_size)
            fixed = peak_bytes - batch_size * per_image
        per_image += self.input_bytes
        return max(0.0, (free_bytes - fixed) / per_image) if per_image > 0 else None


def _two_digits(number: float) -> int:
    """Round down to two digits: a prediction is no more exact."""
    unit: int = 10 ** max(0, len(str(int(number))) - 2)
    return int(number) // unit * unit
