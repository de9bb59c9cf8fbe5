"""What a comparison would need, predicted from a batch of one before anything large is run; and, from the same figures,
how many images fit into the memory at hand."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from time import perf_counter

from gradless.arms import Arm
from gradless.peak import recorded_peak
from gradless.records import ArmName, ComparisonOptions, LargestBatch
from gradless.subject import Subject
from models.interface.errors import ComparisonTooLargeError

# Of the memory that is free: serving goes on beside the comparison.
MAY_USE = 3 / 4

# A comparison that would take longer than this with a single round is refused.
MAX_SECONDS = 600.0

# As is one with a forward that would: requests to the same model wait behind it.
MAX_FORWARD_SECONDS = 30.0

# Forwards of each arm that a comparison cannot do without: one to look at and one round; some arms have one more.
_FORWARDS = 2.5

# In train mode BatchNorm wants more than one value a channel, which one image may not give.
_SMALLEST_BATCHES = (1, 2)

# The arms that can stand for a forward without gradients, the first that was measured does.
_WITHOUT_GRADIENTS: tuple[ArmName, ...] = ("inference_mode", "no_grad", "set_grad_enabled_false", "frozen")


@dataclass(frozen=True, slots=True)
class Trial:
    """A forward of `batch_size` images, 1 or 2: its peak, None where PyTorch cannot tell, and its seconds."""

    batch_size: int
    peak_bytes: int | None
    seconds: float


def tried(arm: Arm, subject: Subject) -> Trial:
    """Of the smallest batch that the arm can run. Raises what its forward raises where it can run none."""
    *smaller, last = _SMALLEST_BATCHES
    for size in smaller:
        try:
            return _tried(arm, subject, size)
        except Exception:  # noqa: BLE001, S112 - the last size tells why
            continue
    return _tried(arm, subject, last)


def _tried(arm: Arm, subject: Subject, size: int) -> Trial:
    inputs = subject.batch(size)
    with subject.turn:
        # The first forward of its shape pays for what the others find prepared.
        arm.forward(inputs)
    with subject.turn:
        started_at = perf_counter()
        with recorded_peak(subject.device, arm.memory_note) as recording:
            arm.forward(inputs)
        return Trial(size, recording.peak.bytes, perf_counter() - started_at)


@dataclass(frozen=True, slots=True)
class Prediction:
    """From the trials of some arms, the bytes of one input, and those of the weights."""

    trials: Mapping[ArmName, Trial]
    input_bytes: int
    weight_bytes: int

    def needed_bytes(self, batch_size: int) -> float:
        """At most at one time. A forward allocates in proportion to its images; beside it there are the inputs, the
        weights of the copy in train mode, and gradients of the backward pass that is tried."""
        an_image = max(((trial.peak_bytes or 0) / trial.batch_size for trial in self.trials.values()), default=0.0)
        return batch_size * (an_image + self.input_bytes) + 2 * self.weight_bytes

    def forward_seconds(self, batch_size: int) -> float:
        """Of the slowest arm."""
        return batch_size * max((trial.seconds / trial.batch_size for trial in self.trials.values()), default=0.0)

    def least_seconds(self, batch_size: int) -> float:
        return batch_size * _FORWARDS * sum(trial.seconds / trial.batch_size for trial in self.trials.values())

    def check(self, options: ComparisonOptions, free_bytes: int) -> None:
        """Raises ComparisonTooLargeError for what would not fit into its share of `free_bytes`, or take too long."""
        largest = max(options.batch_size, *options.sweep) if options.sweep else options.batch_size
        allowed_bytes = int(MAY_USE * free_bytes)
        if (needed_bytes := int(self.needed_bytes(largest))) > allowed_bytes:
            raise ComparisonTooLargeError(largest, "bytes", needed_bytes, allowed_bytes)
        if (seconds := self.forward_seconds(largest)) > MAX_FORWARD_SECONDS:
            raise ComparisonTooLargeError(largest, "forward seconds", seconds, MAX_FORWARD_SECONDS)
        if (seconds := self.least_seconds(options.batch_size)) > MAX_SECONDS:
            raise ComparisonTooLargeError(options.batch_size, "seconds", seconds, MAX_SECONDS)

    def largest_batch(
        self, peaks: Mapping[ArmName, int | None], batch_size: int, free_bytes: int
    ) -> LargestBatch | None:
        """With the peaks at `batch_size`; None where a forward with gradients, or one without, was not measured."""
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
        """Images whose forward fits, if each adds as much as each did between the trial's batch and this one."""
        fixed, an_image = 0.0, peak_bytes / batch_size
        if batch_size > trial.batch_size and trial.peak_bytes is not None:
            an_image = (peak_bytes - trial.peak_bytes) / (batch_size - trial.batch_size)
            fixed = peak_bytes - batch_size * an_image
        return max(0, int((free_bytes - fixed) / (an_image + self.input_bytes)))
