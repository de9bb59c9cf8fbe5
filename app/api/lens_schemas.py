"""What the lens is asked and what it answers over HTTP. The same report is what `gradless compare --json` writes."""

from __future__ import annotations

from typing import Annotated

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, field_validator

from app.api.schemas import Schema
from gradless.records import ARMS, ArmName, ComparisonOptions, ComparisonStage

MAX_BATCH_SIZE = 64
MAX_ITERATIONS = 50
MAX_SWEEP = 16

BatchSize = Annotated[int, Field(ge=1, le=MAX_BATCH_SIZE)]


def _each_once(values: list[ArmName]) -> list[ArmName]:
    return list(dict.fromkeys(values))


class GradModesRequest(Schema):
    """A body of this form may say what the query can say as well, and wins over it."""

    model: str | None = Field(None, description="a served model's name; the default without it")
    arms: Annotated[list[ArmName], AfterValidator(_each_once)] = Field(
        list(ARMS), min_length=1, description="the ways to run the forward that are compared"
    )
    batch_size: BatchSize = Field(32, description="images in the forward")
    iterations: int = Field(5, ge=1, le=MAX_ITERATIONS, description="timed forwards an arm, if time allows")
    sweep: list[BatchSize] = Field([], max_length=MAX_SWEEP, description="batch sizes to compare at as well")
    modules: bool = Field(True, description="say which module makes autograd keep what")

    def options(self) -> ComparisonOptions:
        return ComparisonOptions(
            arms=tuple(self.arms),
            batch_size=self.batch_size,
            iterations=self.iterations,
            sweep=tuple(self.sweep),
            modules=self.modules,
        )


class GradModesQuery(GradModesRequest):
    """The same as query parameters, lists also with commas: sweep=1,2,4."""

    model_config = ConfigDict(extra="ignore")

    @field_validator("arms", "sweep", mode="before")
    @classmethod
    def _at_commas(cls, values: list[str]) -> list[str]:
        return [part.strip() for value in values for part in str(value).split(",") if part.strip()]


class _Found(BaseModel):
    """The base of what is made of the records of gradless.records, field by field."""

    model_config = ConfigDict(frozen=True, extra="forbid", from_attributes=True)


class Spread(_Found):
    median: float
    lower_quartile: float
    upper_quartile: float


class OutputFacts(_Found):
    requires_grad: bool
    grad_fn: str | None
    is_inference: bool
    version_counter_readable: bool


class Backward(_Found):
    works: bool
    error: str | None = Field(description="PyTorch's own words")


class TrainFacts(_Found):
    batchnorm_buffers: int
    batchnorm_buffers_moved: int
    runs_agree: bool


class Arm(_Found):
    arm: ArmName
    seconds: Spread = Field(description="of one forward, over the timed rounds")
    peak_bytes: int | None = Field(description="allocated at once, at most, above the start")
    peak_note: str | None = Field(description="why PyTorch cannot tell the peak")
    retained_bytes: int = Field(description="kept for a backward pass, beside parameters, buffers and input")
    retained_tensors: int
    output: OutputFacts
    backward: Backward = Field(description="whether a backward pass works, tried on a copy")
    max_abs_difference: float | None = Field(description="largest difference of a logit to inference_mode's")
    top1_agreement: float | None = Field(
        ge=0, le=1, description="share of images with inference_mode's likeliest class; null without classes"
    )
    train: TrainFacts | None = Field(description="of the arm train alone")


class LeftOut(_Found):
    arm: ArmName
    reason: str


class ModuleRetained(_Found):
    module: str = Field(description="as in named_modules(); empty for the network itself")
    type: str
    retained_bytes: int
    retained_tensors: int


class SweptArm(_Found):
    arm: ArmName
    median_seconds: float
    retained_bytes: int
    peak_bytes: int | None


class SweepPoint(_Found):
    batch_size: int
    arms: list[SweptArm]


class LargestBatch(_Found):
    memory_bytes: int = Field(description="free before the comparison")
    with_gradients: int
    without_gradients: int


class GradModes(_Found):
    model: str
    fingerprint: str
    architecture: str
    device: str
    dtype: str = Field(description="what is served computes in it; the other arms in float32")
    backend: str
    batch_size: int
    iterations: int = Field(description="rounds timed: fewer than asked for where time was up")
    input: str
    torch: str
    arms: list[Arm]
    left_out: list[LeftOut] = Field(description="arms asked for that cannot be run on this network")
    modules: list[ModuleRetained] = Field(description="of the arm grad, largest first")
    sweep: list[SweepPoint]
    largest_batch: LargestBatch | None = Field(description="images in one forward that would fit")
    sentences: list[str] = Field(description="the same in plain words")


class Progress(_Found):
    done: int = Field(description="forwards")
    total: int
    stage: ComparisonStage
