"""What the lens is asked and what it found, as plain records, readable without torch. How it is measured is the
business of gradless."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

ArmName = Literal["grad", "no_grad", "set_grad_enabled_false", "inference_mode", "frozen", "train", "served"]
ARMS: tuple[ArmName, ...] = get_args(ArmName)

ComparisonStage = Literal["warming up", "timing", "memory", "modules", "sweep"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ComparisonOptions:
    """What to compare. `arms` in the order of the report; `sweep` are batch sizes to repeat it at; `modules`: say
    which module retains what.

    `seconds` bounds the timed rounds, and a sweep once more: as many rounds are run as fit, one at least.
    Raises ValueError for a number of images or rounds below 1.
    """

    arms: tuple[ArmName, ...] = ARMS
    batch_size: int = 32
    iterations: int = 5
    sweep: tuple[int, ...] = ()
    modules: bool = True
    seconds: float = 60.0

    def __post_init__(self) -> None:
        if min(self.batch_size, self.iterations, *self.sweep) < 1:
            raise ValueError("batch sizes and iterations are at least 1")


@dataclass(frozen=True, slots=True)
class Progress:
    """Forwards done and in all, as far as known, and what the next one is for."""

    done: int
    total: int
    stage: ComparisonStage


@dataclass(frozen=True, slots=True)
class Retained:
    """What autograd keeps for a backward pass: bytes of the distinct storages, and how many there are."""

    bytes: int
    tensors: int


@dataclass(frozen=True, slots=True)
class Peak:
    """Bytes at most allocated at once during a forward, above its start; its output counts, its input does not.
    None where PyTorch cannot tell, and `note` says why."""

    bytes: int | None
    note: str | None = None


@dataclass(frozen=True, slots=True)
class Spread:
    """Of the timed rounds of an arm, in seconds."""

    median: float
    lower_quartile: float
    upper_quartile: float


@dataclass(frozen=True, slots=True)
class OutputFacts:
    """What autograd has to say of an output. `grad_fn` is the name of the node that made it."""

    requires_grad: bool
    grad_fn: str | None
    is_inference: bool
    version_counter_readable: bool


@dataclass(frozen=True, slots=True)
class Backward:
    """Whether a backward pass works from the arm's output; if not, PyTorch's own words."""

    works: bool
    error: str | None


@dataclass(frozen=True, slots=True)
class TrainFacts:
    """What train mode does in spite of no_grad: BatchNorm buffers there are and that a forward moved, and whether
    two runs on one input agree, which Dropout prevents."""

    batchnorm_buffers: int
    batchnorm_buffers_moved: int
    runs_agree: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class ArmReport:
    """One arm's forward. `max_abs_difference` is the largest one of any logit to inference_mode's (of any feature, in a
    network without classes), None where one of them is no number; `top1_agreement` the share of images, 0..1, whose
    likeliest class is the same, None where there are no classes."""

    arm: ArmName
    seconds: Spread
    peak_bytes: int | None
    peak_note: str | None
    retained_bytes: int
    retained_tensors: int
    output: OutputFacts
    backward: Backward
    max_abs_difference: float | None
    top1_agreement: float | None
    train: TrainFacts | None


@dataclass(frozen=True, slots=True)
class ModuleRetained:
    """What the forward of one module, its children's left out, made autograd keep. `module` is its name in
    `named_modules()`, "" for the network itself."""

    module: str
    type: str
    retained_bytes: int
    retained_tensors: int


@dataclass(frozen=True, slots=True)
class SweptArm:
    arm: ArmName
    median_seconds: float
    retained_bytes: int
    peak_bytes: int | None


@dataclass(frozen=True, slots=True)
class SweepPoint:
    batch_size: int
    arms: tuple[SweptArm, ...]


@dataclass(frozen=True, slots=True)
class LargestBatch:
    """Images in one forward that would fit into `memory_bytes`, what was free before the comparison."""

    memory_bytes: int
    with_gradients: int
    without_gradients: int


@dataclass(frozen=True, slots=True)
class LeftOut:
    """An arm that was asked for and could not be run, and why."""

    arm: ArmName
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """The report. `iterations` is how many rounds were timed, which is fewer than asked for where time was up;
    `modules`, largest first, are of the arm `grad`."""

    model: str
    fingerprint: str
    architecture: str
    device: str
    dtype: str
    backend: str
    batch_size: int
    iterations: int
    input: str
    torch: str
    arms: tuple[ArmReport, ...]
    left_out: tuple[LeftOut, ...]
    modules: tuple[ModuleRetained, ...]
    sweep: tuple[SweepPoint, ...]
    largest_batch: LargestBatch | None
    sentences: tuple[str, ...]
