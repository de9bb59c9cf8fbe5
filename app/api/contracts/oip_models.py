"""What the Open Inference Protocol tells of models, and how it changes them, over REST and gRPC: metadata,
configuration, the repository and statistics."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import Any

from app.api.contracts.output_tensors import PROBABILITIES
from app.api.contracts.tensors import BYTES
from app.api.contracts.views import View, model_of, view_names, view_of
from app.http.contract import Contract, json_errors
from app.http.problems import TABLE, InvalidInputError, NotReadyError, Row
from app.observability.metrics import ModelSample
from models.interface.model_sources import MODEL_NAME, split_name
from models.interface.results import ModelCard
from models.interface.runtime import Runtime

PLATFORM = "gradless_pytorch"
BACKEND = "gradless"
INPUT = "image"
# Over REST only.
STATISTICS = "statistics"
EXTENSIONS = (
    "binary_tensor_data",
    "classification",
    "model_configuration",
    "model_repository",
    "parameters",
    STATISTICS,
)

_MAX_NAME_CHARACTERS = 128

# Datatypes of the advertised inputs that are ready pixels.
_PIXELS = {"pixels": "UINT8", "tensor": "FP32"}

# Labels of the counts, and the durations of Triton that they stand for. Decoding prepares the input.
_DURATIONS = {"queue": "queue", "compute_input": "decode", "compute_infer": "forward", "compute_output": "respond"}
_NOT_COUNTED = {"count": 0, "ns": 0}

# By sample and its label, a stage or an outcome.
Counts = defaultdict[tuple[str, str], float]

_STAGE_SECONDS = "gradless_stage_duration_seconds"
_LAST_BATCH = ("gradless_last_batch_timestamp_seconds", "")


def _error(_status: int, row: Row, message: str) -> dict[str, Any]:
    # Clients read the error of every answer, and whether it is ready in that of the probe.
    return {"error": message} if row is not TABLE[NotReadyError] else {"ready": False, "error": message}


OIP = Contract("oip", json_errors(_error))


def model_metadata(view: View) -> dict[str, Any]:
    """Return the metadata of a view: name, versions, platform, inputs, outputs and properties, which are texts."""
    model = view.model
    return {
        "name": view.name,
        "versions": [str(model.version)],
        "platform": PLATFORM,
        "inputs": [{"name": INPUT, "datatype": _input_datatype(view), "shape": [-1, *_input_dimensions(view)]}],
        "outputs": [{"name": view.output, "datatype": "FP32", "shape": [-1, _output_columns(view)]}],
        "properties": {
            "fingerprint": model.fingerprint,
            "mean": _joined(model.mean),
            "std": _joined(model.std),
            "layout": "NCHW or NHWC, RGB",
            "views": ", ".join(view_names(model)),
        },
    }


def model_configuration(view: View, most_images: int) -> dict[str, Any]:
    """Return the configuration of a view as Triton has it; dimensions leave out that of the batch. `most_images` is
    that of a request."""
    datatype = "STRING" if view.input == "files" else _input_datatype(view)
    labels = {"label_filename": "labels.txt"} if view.output == PROBABILITIES else {}
    return {
        "name": view.name,
        "platform": PLATFORM,
        "backend": BACKEND,
        "version_policy": {"latest": {"num_versions": 1}},
        "max_batch_size": most_images,
        "input": [
            {
                "name": INPUT,
                "data_type": f"TYPE_{datatype}",
                "format": "FORMAT_NONE" if view.input == "files" else "FORMAT_NCHW",
                "dims": _input_dimensions(view),
                "optional": False,
            }
        ],
        "output": [{"name": view.output, "data_type": "TYPE_FP32", "dims": [_output_columns(view)], **labels}],
        "dynamic_batching": {},
    }


def _input_datatype(view: View) -> str:
    return _PIXELS.get(view.input, BYTES)


def _input_dimensions(view: View) -> list[int]:
    side = view.model.input_size
    return [1] if view.input == "files" else [3, side, side]


def _output_columns(view: View) -> int:
    return view.model.classes if view.output == PROBABILITIES else view.model.feature_dimensions


def _joined(numbers: Sequence[float]) -> str:
    return ",".join(f"{number:.6g}" for number in numbers)


def repository_index(runtime: Runtime, *, ready_only: bool) -> list[dict[str, str]]:
    """Return name, version and state of every view of the served models."""
    states = dict.fromkeys(runtime.down, ("UNAVAILABLE", "it is being restarted"))
    return [
        {"name": view, "version": str(card.version), "state": state, "reason": reason}
        for card in runtime.cards.values()
        for state, reason in [states.get(card.name, ("READY", ""))]
        if state == "READY" or not ready_only
        for view in view_names(card)
    ]


def check_load_parameters(names: Iterable[str]) -> None:
    """Raise InvalidInputError for parameters of a load that would change the model."""
    if any(name == "config" or name.startswith("file:") for name in names):
        raise InvalidInputError("A model is loaded as it is stored: neither config nor files are accepted.")


async def load_by_name(runtime: Runtime, configured: Iterable[str], name: str) -> None:
    """Load a model again; one that is not served, from its source among `configured` (NAME=SOURCE) or else from the
    source of that name. `name` may be that of a view.

    Raises InvalidInputError, and what Runtime.load raises.
    """
    model = _changed_model(name)
    sources = dict(map(split_name, configured))
    await runtime.load(model, None if model in runtime.cards else sources.get(model, model))


async def unload_by_name(runtime: Runtime, name: str) -> None:
    """Unload a model. Raises InvalidInputError, and what Runtime.unload raises."""
    await runtime.unload(_changed_model(name))


def _changed_model(name: str) -> str:
    model = model_of(name)
    if len(model) > _MAX_NAME_CHARACTERS or not re.fullmatch(MODEL_NAME, model):
        raise InvalidInputError(f"{model[:_MAX_NAME_CHARACTERS]!r} is not a name of a model.")
    return model


def model_statistics(cards: Iterable[ModelCard], samples: Iterable[ModelSample]) -> list[dict[str, Any]]:
    """Return the statistics of models, since they were loaded first, from the samples of their metrics."""
    cards = list(cards)
    counted: dict[str, Counts] = {card.name: defaultdict(float) for card in cards}
    for sample in samples:
        if sample.model in counted:
            counts = counted[sample.model]
            key = sample.name, sample.labels.get("stage") or sample.labels.get("outcome", "")
            # A time of several replicas is the latest; all else adds up.
            counts[key] = max(counts[key], sample.value) if key == _LAST_BATCH else counts[key] + sample.value
    return [_statistics(view_of(card), counted[card.name]) for card in cards]


def _statistics(view: View, counts: Counts) -> dict[str, Any]:
    return {
        "name": view.name,
        "version": str(view.model.version),
        # Milliseconds since 1970.
        "last_inference": round(counts[_LAST_BATCH] * 1e3),
        "inference_count": round(counts["gradless_images_total", "ok"]),
        "execution_count": round(counts["gradless_batch_size_count", ""]),
        "inference_stats": {
            **{
                outcome: _duration(
                    counts["gradless_model_requests_total", label],
                    counts["gradless_model_request_seconds_total", label],
                )
                for outcome, label in (("success", "ok"), ("fail", "failed"))
            },
            **{
                duration: _duration(counts[f"{_STAGE_SECONDS}_count", stage], counts[f"{_STAGE_SECONDS}_sum", stage])
                for duration, stage in _DURATIONS.items()
            },
            "cache_hit": _NOT_COUNTED,
            "cache_miss": _NOT_COUNTED,
        },
        "batch_stats": [],
        "memory_usage": [],
        "response_stats": {},
    }


def _duration(count: float, seconds: float) -> dict[str, int]:
    return {"count": round(count), "ns": round(seconds * 1e9)}
