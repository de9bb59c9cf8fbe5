"""Request and response bodies. Called schemas, because "models" means classifiers in this project."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

from app.http.problems import Problem

Probability = Annotated[float, Field(ge=0, le=1)]


class Schema(BaseModel):
    """Base of every body: immutable, without undeclared fields."""

    model_config = ConfigDict(frozen=True, extra="forbid")


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


class ModelDescription(Schema):
    name: str
    architecture: str
    parameters: int
    weight_bytes: int
    input_size: int = Field(description="side of the network's input in pixels")
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
    search: IndexDescription | None = Field(description="index of POST /v1/search, if there is one")


class ModelSource(Schema):
    source: str | None = Field(
        None,
        min_length=1,
        max_length=256,
        description="name in the catalog, or a folder in GRADLESS_MODELS_FOLDER; without it, the current source",
    )


class ModelList(Schema):
    models: list[ModelDescription] = Field(description="the default model first")


class Health(Schema):
    status: str
