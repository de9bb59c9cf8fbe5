"""Request and response bodies. Called schemas, so that "models" means one thing in this project."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

from app.http.problems import Problem

Probability = Annotated[float, Field(ge=0, le=1)]


class Schema(BaseModel):
    """The base of every body: immutable, and no field that is not declared."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Prediction(Schema):
    index: int = Field(ge=0, description="class index of the model")
    label: str
    probability: Probability


class Classification(Schema):
    predictions: list[Prediction] = Field(description="the likeliest classes, most probable first")


class Faulty(Schema):
    """Stands in an image's place when that image has a fault of its own."""

    error: Problem


class Classifications(Schema):
    model: str
    fingerprint: str = Field(description="hash of weights, transform, precision and backend")
    results: list[Classification | Faulty] = Field(description="one for each image, in order")


class Features(Schema):
    features: list[float] = Field(description="float32 numbers, as many as `dimensions`")


class EncodedFeatures(Schema):
    features: str = Field(description="base64 of little-endian float32, 4 bytes a dimension")


class FeatureVectors(Schema):
    model: str
    fingerprint: str = Field(description="vectors of equal fingerprints can be compared")
    dimensions: int = Field(ge=1)
    shape: list[int] = Field(description="of an image's features before they were written as one row of `dimensions`")
    results: list[Features | EncodedFeatures | Faulty] = Field(description="one for each image, in order")


class Neighbour(Schema):
    row: int = Field(ge=0, description="its place in the index")
    path: str = Field(description="as the operator's index has it")
    similarity: float = Field(ge=-1, le=1, description="cosine of the angle between the two vectors")
    thumbnail: bool = Field(description="whether /v1/search/thumbnails/{row} has a picture")


class Found(Schema):
    neighbours: list[Neighbour] = Field(description="the most alike first")


class Neighbours(Schema):
    model: str
    fingerprint: str
    indexed: int = Field(ge=1, description="images in the index")
    results: list[Found | Faulty] = Field(description="one for each image, in order")


class IndexDescription(Schema):
    rows: int = Field(ge=1, description="images in the index")
    exact: bool = Field(description="every vector is looked at")
    recall: float = Field(ge=0, le=1, description="share of the ten nearest that was found when it was built")
    thumbnails: int = Field(ge=0, description="images with a small picture")


class ModelDescription(Schema):
    name: str
    architecture: str
    parameters: int
    weight_bytes: int
    input_size: int = Field(description="side in pixels of what the network gets")
    classes: int = Field(ge=0, description="0 for a network that gives features alone")
    feature_dimensions: int
    feature_shape: list[int] = Field(description="of an image's features; for a map three numbers")
    feature_layer: str | None = Field(description="the inner layer served; null for what goes into the head")
    device: str
    dtype: str
    backend: str
    fingerprint: str
    training: bool
    version: int = Field(ge=1, description="counts the loads of this name since the service started")
    search: IndexDescription | None = Field(description="the index that POST /v1/search looks into, if there is one")


class ModelSource(Schema):
    source: str | None = Field(
        None,
        min_length=1,
        max_length=256,
        description="a name of the catalog, or a folder in GRADLESS_MODELS_FOLDER; without it, from where it came",
    )


class ModelList(Schema):
    models: list[ModelDescription] = Field(description="the default first")


class Health(Schema):
    status: str
