"""The outputs of the Open Inference Protocol: which a request asks for, and their tensors. Pure: no request, no I/O."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from app.api.contracts.adapter import MAX_TOP_K
from app.api.contracts.tensors import BYTES, join_elements
from app.api.contracts.views import View
from app.http.problems import InvalidInputError
from models.interface.request import InferenceRequest
from models.interface.results import Prediction

PROBABILITIES = "probabilities"
FEATURES = "features"


@dataclass(frozen=True, slots=True)
class WantedOutput:
    """An output that a request asks for. With `classification` it is that many of the likeliest classes as texts."""

    name: str
    classification: int = 0


@dataclass(frozen=True, slots=True)
class OutputTensor:
    """`values` is float32 of the `shape`, or texts, row by row."""

    name: str
    datatype: str
    shape: tuple[int, int]
    values: NDArray[np.float32] | list[bytes]

    def raw(self) -> bytes:
        """Return it as a binary tensor."""
        if isinstance(self.values, list):
            return join_elements(self.values)
        return self.values.astype("<f4", copy=False).tobytes()

    def flat(self) -> list[float] | list[str]:
        """Return its elements for JSON."""
        if isinstance(self.values, list):
            return [text.decode() for text in self.values]
        numbers: list[float] = self.values.reshape(-1).tolist()
        return numbers


def chosen_outputs(wanted: Sequence[WantedOutput], view: View) -> list[WantedOutput]:
    """Return the outputs of an answer: those `wanted`, or else the view's. Raises InvalidInputError."""
    known = [PROBABILITIES, FEATURES] if view.model.classes else [FEATURES]
    names = [output.name for output in wanted]
    if not set(names) <= set(known) or len(set(names)) < len(names):
        stated = ", ".join(name[:40] for name in names[: len(known) + 1])
        raise InvalidInputError(f"The outputs are {' and '.join(known)}, each at most once; not {stated}.")
    if any(output.classification and output.name != PROBABILITIES for output in wanted):
        raise InvalidInputError(f"classification is of the output {PROBABILITIES} alone.")
    chosen = [
        WantedOutput(output.name, min(output.classification, view.model.classes))
        for output in wanted or [WantedOutput(view.output)]
    ]
    if any(output.classification > MAX_TOP_K for output in chosen):
        raise InvalidInputError(f"classification is at most {MAX_TOP_K}; without it, the output has all classes.")
    return chosen


def inference_request(outputs: Sequence[WantedOutput]) -> InferenceRequest:
    """Return the request for predictions that have these outputs, without images."""
    of_classes = [output.classification for output in outputs if output.name == PROBABILITIES]
    if not of_classes:
        return InferenceRequest("features")
    return InferenceRequest("classify", top_k=max(of_classes), all_probabilities=0 in of_classes)


def output_tensors(outputs: Sequence[WantedOutput], predictions: Sequence[Prediction]) -> list[OutputTensor]:
    """Return the tensor of each output, with a row for each prediction. There is at least one prediction."""
    return [_tensor(output, predictions) for output in outputs]


def _tensor(output: WantedOutput, predictions: Sequence[Prediction]) -> OutputTensor:
    if output.classification:
        texts = [
            f"{scored.probability:f}:{scored.index}:{scored.label}".encode()
            for found in predictions
            for scored in found.classes
        ]
        return OutputTensor(output.name, BYTES, (len(predictions), len(texts) // len(predictions)), texts)
    if output.name == FEATURES:
        rows = np.stack([found.features for found in predictions])
    else:
        rows = np.stack([found.all_probabilities for found in predictions if found.all_probabilities is not None])
    return OutputTensor(output.name, "FP32", (rows.shape[0], rows.shape[1]), rows)
