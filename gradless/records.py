"""Options, progress and report of a comparison, as plain records that are imported without torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

ArmName = Literal["grad", "no_grad", "set_grad_enabled_false", "inference_mode", "frozen", "train", "served"]
ARMS: tuple[ArmName, ...] = get_args(ArmName)

# How an arm's time compares with another's in the same rounds.
TimeVerdict = Literal["less", "more", "no difference shown"]

ComparisonStage = Literal["warming up", "timing", "memory", "modules", "sweep"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ComparisonOptions:
    """What to compare. `arms` in the order of the report; `sweep` are further batch sizes; `modules` adds the bytes
    that each module retains.

    `seconds` limits the timed rounds, and again the sweep; at least one round is run. `iterations` is the most rounds.
    `force` runs a comparison that is predicted to take too long. Raises ValueError or TypeError for an option that
    cannot be used.
    """

    arms: tuple[ArmName, ...] = ARMS
    batch_size: int = 32
    iterations: int = 12
    sweep: tuple[int, ...] = ()
    modules: bool = True
    seconds: float = 60.0
    force: bool = False

    def __post_init__(self) -> None:
        if wrong := [name for name in self.arms if name not in ARMS]:
            raise ValueError(f"there is no arm {wrong[0]!r}; there is {', '.join(ARMS)}")
        if not self.arms:
            raise ValueError(f"arms: at least one is needed; there is {', '.join(ARMS)}")
        counts = (("batch_size", self.batch_size), ("iterations", self.iterations))
        for option, number in (*counts, *(("sweep", size) for size in self.sweep)):
            if not hasattr(number, "__index__"):
                raise TypeError(f"{option}: a whole number is needed, not {number!r}")
            if number < 1:
                raise ValueError(f"{option}: at least 1 is needed, not {number}")
        if not (hasattr(self.seconds, "__float__") and self.seconds >= 0):
            raise TypeError(f"seconds: a number from 0 is needed, not {self.seconds!r}")


@dataclass(frozen=True, slots=True)
class Progress:
    """Forwards done, forwards in total as far as known, and the stage of the next one."""

    done: int
    total: int
    stage: ComparisonStage


@dataclass(frozen=True, slots=True)
class Retained:
    """What autograd keeps for a backward pass: bytes and number of distinct storages."""

    bytes: int
    tensors: int


@dataclass(frozen=True, slots=True)
class Peak:
    """Peak memory of a forward in bytes above the level at its start: the output counts, the input does not.

    None if PyTorch cannot measure it; `note` then says why."""

    bytes: int | None
    note: str | None = None


@dataclass(frozen=True, slots=True)
class Spread:
    """Median and quartiles of an arm's timed rounds, in seconds."""

    median: float
    lower_quartile: float
    upper_quartile: float


@dataclass(frozen=True, slots=True)
class OutputFacts:
    """Autograd state of an output. `grad_fn` is the name of the node that produced it."""

    requires_grad: bool
    grad_fn: str | None
    is_inference: bool
    version_counter_readable: bool


@dataclass(frozen=True, slots=True)
class Backward:
    """Whether a backward pass from the arm's output works; if not, PyTorch's message."""

    works: bool
    error: str | None


@dataclass(frozen=True, slots=True)
class TrainFacts:
    """Effects of train mode under no_grad: the number of BatchNorm buffers, how many of them a forward changed, and
    whether two runs on one input agree; as a control, whether two runs in eval mode do. `dropouts` counts modules."""

    batchnorm_buffers: int
    batchnorm_buffers_moved: int
    runs_agree: bool
    eval_runs_agree: bool
    dropouts: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ArmReport:
    """Results of one arm.

    `against_grad` compares its time with the arm `grad`; None without that arm. Retained bytes and storages are None
    if they could not be observed; `retained_note` then says why. Differences are from the arm `inference_mode`:
    `max_abs_difference` of any element, None if it is not finite or the shapes differ; `top1_agreement` the share of
    images, 0..1, with the same top class, None for a network without classes."""

    arm: ArmName
    seconds: Spread
    against_grad: TimeVerdict | None
    peak_bytes: int | None
    peak_note: str | None
    retained_bytes: int | None
    retained_tensors: int | None
    retained_note: str | None
    output: OutputFacts
    backward: Backward
    max_abs_difference: float | None
    top1_agreement: float | None
    train: TrainFacts | None


@dataclass(frozen=True, slots=True)
class ModuleRetained:
    """What autograd keeps from the forward of one module, without its children.

    `module` is its name in `named_modules()`, "" for the network itself."""

    module: str
    type: str
    retained_bytes: int
    retained_tensors: int


@dataclass(frozen=True, slots=True)
class SweptArm:
    arm: ArmName
    median_seconds: float
    retained_bytes: int | None
    peak_bytes: int | None


@dataclass(frozen=True, slots=True)
class SweepPoint:
    batch_size: int
    arms: tuple[SweptArm, ...]


@dataclass(frozen=True, slots=True)
class LargestBatch:
    """Images per forward that fit into `memory_bytes`, the free memory before, predicted to two digits."""

    memory_bytes: int
    with_gradients: int
    without_gradients: int


@dataclass(frozen=True, slots=True)
class LeftOut:
    """An arm of the options that could not run, and the reason."""

    arm: ArmName
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """The report. `iterations` is the number of timed rounds, less than in the options if their time was up.

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
