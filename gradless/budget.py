"""Predict what a comparison needs from a batch of one or two images, before any large batch runs.

The same figures give the largest batch that fits into free memory.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from time import perf_counter

from gradless.arms import Arm, Subject
from gradless.errors import ComparisonTooLargeError
from gradless.memory import recorded_peak
from gradless.records import ArmName, ComparisonOptions, LargestBatch

# Share of free memory that a comparison may use; serving continues meanwhile.
ALLOWED_SHARE = 3 / 4

# A comparison that would take longer than this with a single round is refused.
MAX_SECONDS = 600.0

# A comparison with a forward longer than this is refused: requests to the same model wait for it.
MAX_FORWARD_SECONDS = 30.0

# Forwards of each arm that every comparison needs: one examined, one timed, and for some arms one more.
_FORWARDS = 2.5

# In train mode BatchNorm needs more than one value per channel, which one image may not have.
_TRIAL_BATCHES = (1, 2)

# Arms that represent a forward without gradients; the first one that was measured is used.
_WITHOUT_GRADIENTS: tuple[ArmName, ...] = ("inference_mode", "no_grad", "set_grad_enabled_false", "frozen")


@dataclass(frozen=True, slots=True)
class Trial:
    """A forward of `batch_size` images, 1 or 2. `peak_bytes` is None if PyTorch cannot measure it."""

    batch_size: int
    peak_bytes: int | None
    seconds: float


def run_trial(arm: Arm, subject: Subject) -> Trial:
    """Run the smallest batch that the arm can run. If it can run none, raise what its forward raises."""
    *smaller, last = _TRIAL_BATCHES
    for size in smaller:
        try:
            return _run_trial(arm, subject, size)
        except Exception:  # noqa: BLE001, S112 - the last size raises it
            continue
    return _run_trial(arm, subject, last)


def _run_trial(arm: Arm, subject: Subject, size: int) -> Trial:
    inputs = subject.batch(size)
    with subject.lock:
        # The first forward of a shape initializes what later ones reuse.
        arm.forward(inputs)
    with subject.lock:
        started_at = perf_counter()
        with recorded_peak(subject.device, arm.memory_note, subject.reset_peak) as recording:
            arm.forward(inputs)
        return Trial(size, recording.peak.bytes, perf_counter() - started_at)


@dataclass(frozen=True, slots=True)
class Prediction:
    """Predicts memory and time from the trials of the arms, the bytes of one input, and those of the weights."""

    trials: Mapping[ArmName, Trial]
    input_bytes: int
    weight_bytes: int

    def needed_bytes(self, batch_size: int) -> float:
        """Predict the peak. Activations and inputs grow with the batch.

        The copy in train mode adds the weights once, and the gradients of the backward pass add them again.
        """
        per_image = max(((trial.peak_bytes or 0) / trial.batch_size for trial in self.trials.values()), default=0.0)
        return batch_size * (per_image + self.input_bytes) + 2 * self.weight_bytes

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
        if (seconds := self.forward_seconds(largest)) > MAX_FORWARD_SECONDS:
            raise ComparisonTooLargeError(largest, "forward seconds", seconds, MAX_FORWARD_SECONDS)
        if (seconds := self.least_seconds(options.batch_size)) > MAX_SECONDS:
            raise ComparisonTooLargeError(options.batch_size, "seconds", seconds, MAX_SECONDS)

    def largest_batch(
        self, peaks: Mapping[ArmName, int | None], batch_size: int, free_bytes: int | None
    ) -> LargestBatch | None:
        """Return the largest batches that fit into `free_bytes`, given the peaks at `batch_size`.

        None if the free memory is unknown, or no forward with gradients or none without was measured.
        """
        if free_bytes is None:
            return None
        fitting = {
            arm: self._fitting(self.trials[arm], peak, batch_size, free_bytes)
            for arm, peak in peaks.items()
            if peak is not None
        }
        without = next((fitting[arm] for arm in _WITHOUT_GRADIENTS if arm in fitting), None)
        if "grad" not in fitting or without is None:
            return None
        return LargestBatch(free_bytes, fitting["grad"], without)

    def _fitting(self, trial: Trial, peak_bytes: int, batch_size: int, free_bytes: int) -> int:
        """Extrapolate from the peaks of the trial and of `batch_size`: each image adds the same amount."""
        fixed, per_image = 0.0, peak_bytes / batch_size
        if batch_size > trial.batch_size and trial.peak_bytes is not None:
            per_image = (peak_bytes - trial.peak_bytes) / (batch_size - trial.batch_size)
            fixed = peak_bytes - batch_size * per_image
        return max(0, int((free_bytes - fixed) / (per_image + self.input_bytes)))
