"""Request and response bodies of the lens. `gradless compare --json` writes the same report."""

from __future__ import annotations

from typing import Annotated

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, field_validator

from app.api.schemas import Schema
from gradless.records import ARMS, ArmName, ComparisonOptions, ComparisonStage, TimeVerdict

MAX_BATCH_SIZE = 64
MAX_ITERATIONS = 50
MAX_SWEEP = 16

BatchSize = Annotated[int, Field(ge=1, le=MAX_BATCH_SIZE)]


def _each_once(values: list[ArmName]) -> list[ArmName]:
    return list(dict.fromkeys(values))


class GradModesRequest(Schema):
    """The parameters as a JSON body, which take precedence over the query."""

    model: str | None = Field(None, description="name of a served model; without it, the default model")
    arms: Annotated[list[ArmName], AfterValidator(_each_once)] = Field(
        list(ARMS), min_length=1, description="arms to compare: ways to run the forward"
    )
    batch_size: BatchSize = Field(32, description="images in the forward")
    iterations: int = Field(12, ge=1, le=MAX_ITERATIONS, description="timed forwards per arm, if time allows")
    sweep: list[BatchSize] = Field([], max_length=MAX_SWEEP, description="further batch sizes to compare at")
    modules: bool = Field(True, description="report what autograd retains for each module")

    def options(self) -> ComparisonOptions:
        return ComparisonOptions(
            arms=tuple(self.arms),
            batch_size=self.batch_size,
            iterations=self.iterations,
            sweep=tuple(self.sweep),
            modules=self.modules,
        )


class GradModesQuery(GradModesRequest):
    """The parameters in the query. Lists may be comma-separated: sweep=1,2,4."""

    model_config = ConfigDict(extra="ignore")

    @field_validator("arms", "sweep", mode="before")
    @classmethod
    def _split_at_commas(cls, values: list[str]) -> list[str]:
        return [part.strip() for value in values for part in str(value).split(",") if part.strip()]


class _Record(BaseModel):
    """Base of the schemas that are validated from the records of gradless.records, field by field."""

    model_config = ConfigDict(frozen=True, extra="forbid", from_attributes=True)


class Spread(_Record):
    median: float
    lower_quartile: float
    upper_quartile: float


class OutputFacts(_Record):
    requires_grad: bool
    grad_fn: str | None
    is_inference: bool
    version_counter_readable: bool


class Backward(_Record):
    works: bool
    error: str | None = Field(description="error message of PyTorch")


class TrainFacts(_Record):
    batchnorm_buffers: int
    batchnorm_buffers_moved: int
    runs_agree: bool = Field(description="whether two runs on one input agree")
    eval_runs_agree: bool = Field(description="the same in eval mode")
    dropouts: int = Field(description="Dropout modules")


class Arm(_Record):
    arm: ArmName
    seconds: Spread = Field(description="of one forward, over the timed rounds")
    against_grad: TimeVerdict | None = Field(
        description="the time against the arm grad, by a sign test over the rounds; null without that arm"
    )
    peak_bytes: int | None = Field(description="peak of allocated memory above the start")
    peak_note: str | None = Field(description="why the peak is unknown")
    retained_bytes: int | None = Field(
        description="retained for a backward pass, without parameters, buffers and input; null if not observable"
    )
    retained_tensors: int | None
    retained_note: str | None = Field(description="why the retained bytes could not be observed")
    output: OutputFacts
    backward: Backward = Field(description="whether a backward pass works, tested on a copy")
    max_abs_difference: float | None = Field(description="largest difference of a logit from inference_mode")
    top1_agreement: float | None = Field(
        ge=0, le=1, description="share of images with the same top-1 class as inference_mode; null without classes"
    )
    train: TrainFacts | None = Field(description="only for the arm train")


class LeftOut(_Record):
    arm: ArmName
    reason: str


class ModuleRetained(_Record):
    module: str = Field(description="name in named_modules(); empty for the network itself")
    type: str
    retained_bytes: int
    retained_tensors: int


class SweptArm(_Record):
    arm: ArmName
    median_seconds: float
    retained_bytes: int | None
    peak_bytes: int | None


class SweepPoint(_Record):
    batch_size: int
    arms: list[SweptArm]


class LargestBatch(_Record):
    memory_bytes: int = Field(description="free before the comparison")
    with_gradients: int
    without_gradients: int


class GradModes(_Record):
    model: str
    fingerprint: str
    architecture: str
    device: str
    dtype: str = Field(description="dtype of the served backend; the other arms compute in float32")
    backend: str
    batch_size: int
    iterations: int = Field(description="timed rounds; fewer than requested if time ran out")
    input: str
    torch: str
    arms: list[Arm]
    left_out: list[LeftOut] = Field(description="requested arms that cannot run on this network")
    modules: list[ModuleRetained] = Field(description="of the arm grad, largest first")
    sweep: list[SweepPoint]
    largest_batch: LargestBatch | None = Field(description="images that fit in one forward")
    sentences: list[str] = Field(description="the findings as sentences")


class Progress(_Record):
    done: int = Field(description="completed forwards")
    total: int
    stage: ComparisonStage
