"""Request and response bodies. Called schemas, because "models" means classifiers in this project."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, field_validator

from app.http.problems import Problem
from gradless.records import ARMS, ArmName, ComparisonOptions, ComparisonStage, TimeVerdict

Probability = Annotated[float, Field(ge=0, le=1)]


class Schema(BaseModel):
    """Base of every body: immutable, without undeclared fields. The lens fills its bodies from gradless.records."""

    model_config = ConfigDict(frozen=True, extra="forbid", from_attributes=True)


class Prediction(Schema):
    index: int = Field(ge=0, description="index of the class in the model")
    label: str
    probability: Probability


class Classification(Schema):
    predictions: list[Prediction] = Field(description="most probable classes, highest probability first")


class Faulty(Schema):
    """Replaces the result of an invalid image."""

    error: Problem


class Classifications(Schema):
    model: str
    fingerprint: str = Field(description="hash of weights, transform, precision and backend")
    results: list[Classification | Faulty] = Field(description="one result per image, in order")


class Features(Schema):
    features: list[float] = Field(description="`dimensions` float32 numbers")


class EncodedFeatures(Schema):
    features: str = Field(description="base64 of little-endian float32, 4 bytes per dimension")


class FeatureVectors(Schema):
    model: str
    fingerprint: str = Field(description="vectors with equal fingerprints can be compared")
    dimensions: int = Field(ge=1)
    shape: list[int] = Field(description="shape of one image's features before they were flattened to `dimensions`")
    results: list[Features | EncodedFeatures | Faulty] = Field(description="one result per image, in order")


class ImageOutputs(Schema):
    predictions: list[Prediction] | None = Field(
        description="most probable classes, highest probability first; null unless requested"
    )
    features: list[float] | str | None = Field(
        description="`dimensions` numbers, or base64 of little-endian float32; null unless requested"
    )


class ModelOutputs(Schema):
    model: str
    fingerprint: str = Field(description="hash of weights, transform, precision and backend")
    dimensions: int = Field(ge=1)
    shape: list[int] = Field(description="shape of one image's features before they were flattened to `dimensions`")
    results: list[ImageOutputs | Faulty] = Field(description="one result per image, in order")


class Neighbour(Schema):
    row: int = Field(ge=0, description="row in the index")
    path: str = Field(description="path in the index")
    similarity: float = Field(ge=-1, le=1, description="cosine similarity of the two vectors")
    thumbnail: bool = Field(description="whether /v1/search/thumbnails/{row} has a thumbnail")


class Found(Schema):
    neighbours: list[Neighbour] = Field(description="most similar first")


class Neighbours(Schema):
    model: str
    fingerprint: str
    indexed: int = Field(ge=1, description="images in the index")
    results: list[Found | Faulty] = Field(description="one result per image, in order")


class IndexDescription(Schema):
    rows: int = Field(ge=1, description="images in the index")
    exact: bool = Field(description="whether every vector is compared (no approximation)")
    recall: float = Field(
        ge=0, le=1, description="share of the ten nearest neighbours found, measured when the index was built"
    )
    thumbnails: int = Field(ge=0, description="images with a thumbnail")


class ListedModel(Schema):
    """A model as OpenAI's API lists it."""

    id: str = Field(description="name of the model")
    object: Literal["model"] = "model"
    created: int = Field(description="UNIX time at which this process started to serve")
    owned_by: Literal["gradless"] = "gradless"


class ModelDescription(ListedModel):
    name: str
    architecture: str
    parameters: int
    weight_bytes: int
    input_size: int = Field(description="side of the network's input in pixels")
    mean: list[float] = Field(description="of the network's normalization, for each RGB channel on the scale 0..1")
    std: list[float] = Field(description="as `mean`")
    classes: int = Field(ge=0, description="0 for a network without a classifier")
    feature_dimensions: int
    feature_shape: list[int] = Field(description="shape of one image's features; three numbers for a feature map")
    feature_layer: str | None = Field(description="inner layer whose output is served; null for the input of the head")
    device: str
    dtype: str
    backend: str
    fingerprint: str
    training: bool
    version: int = Field(ge=1, description="number of loads of this name since the service started")
    ready: bool = Field(description="whether it answers; false while it is restarted")
    search: IndexDescription | None = Field(description="index of POST /v1/search, if there is one")


class ModelSource(Schema):
    source: str | None = Field(
        None,
        min_length=1,
        max_length=256,
        description="name in the catalog, or a folder in GRADLESS_MODELS_FOLDER; without it, the current source",
    )


class RequestLimits(Schema):
    images: int = Field(ge=1, description="maximum images in one request")
    image_bytes: int = Field(ge=1, description="maximum bytes of one image file")
    request_bytes: int = Field(ge=1, description="maximum bytes of a request's body")
    image_formats: list[str] = Field(description="names of the accepted image formats")


class ModelList(Schema):
    models: list[ModelDescription] = Field(description="the default model first")
    object: Literal["list"] = "list"
    data: list[ListedModel] = Field(description="the same models as OpenAI's API lists them")
    limits: RequestLimits = Field(description="of requests with images")


class Health(Schema):
    status: str


BatchSize = Annotated[int, Field(ge=1, le=64)]


class GradModesRequest(Schema):
    """The parameters as a JSON body, which take precedence over the query."""

    model: str | None = Field(None, description="name of a served model; without it, the default model")
    arms: Annotated[list[ArmName], AfterValidator(lambda values: list(dict.fromkeys(values)))] = Field(
        list(ARMS), min_length=1, description="arms to compare: ways to run the forward"
    )
    batch_size: BatchSize = Field(32, description="images in the forward")
    iterations: int = Field(12, ge=1, le=50, description="timed forwards per arm, if time allows")
    sweep: list[BatchSize] = Field([], max_length=16, description="further batch sizes to compare at")
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


class Spread(Schema):
    median: float
    lower_quartile: float
    upper_quartile: float


class OutputFacts(Schema):
    requires_grad: bool
    grad_fn: str | None
    is_inference: bool
    version_counter_readable: bool


class Backward(Schema):
    works: bool
    error: str | None = Field(description="error message of PyTorch")


class TrainFacts(Schema):
    batchnorm_buffers: int
    batchnorm_buffers_moved: int
    runs_agree: bool = Field(description="whether two runs on one input agree")
    eval_runs_agree: bool = Field(description="the same in eval mode")
    dropouts: int = Field(description="Dropout modules")


class Arm(Schema):
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


class LeftOut(Schema):
    arm: ArmName
    reason: str


class ModuleRetained(Schema):
    module: str = Field(description="name in named_modules(); empty for the network itself")
    type: str
    retained_bytes: int
    retained_tensors: int


class SweptArm(Schema):
    arm: ArmName
    median_seconds: float
    retained_bytes: int | None
    peak_bytes: int | None


class SweepPoint(Schema):
    batch_size: int
    arms: list[SweptArm]


class LargestBatch(Schema):
    memory_bytes: int = Field(description="free before the comparison")
    with_gradients: int
    without_gradients: int


class GradModes(Schema):
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


class Progress(Schema):
    done: int = Field(description="completed forwards")
    total: int
    stage: ComparisonStage
