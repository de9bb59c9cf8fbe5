"""A model folder written anew: what can be served now, kept in files that can be moved."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import tomlkit
from safetensors.torch import save_file

from models.errors import ModelFolderError
from models.model_folder.description import FILE_NAME
from models.specs import Classifier

_WEIGHTS, _LABELS = "weights.safetensors", "labels.json"


def write(folder: Path, classifier: Classifier, *, name: str, architecture: str) -> None:
    """Write `classifier` as a model folder: its weights, its labels, and a model.toml with its whole transform.

    `architecture` is one whose network takes the weights as they are. Raises ModelFolderError where there is such a
    folder already, or none can be written. model.toml comes last: what is written in part is no model folder.
    """
    if (folder / FILE_NAME).exists():
        raise ModelFolderError(folder / FILE_NAME, "is there already, and is not overwritten")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        # Copied, since tensors that share their memory are refused.
        state = {
            key: tensor.detach().cpu().contiguous().clone() for key, tensor in classifier.module.state_dict().items()
        }
        save_file(state, folder / _WEIGHTS)
        if classifier.labels:
            text = json.dumps(classifier.labels, ensure_ascii=False, indent=0)
            (folder / _LABELS).write_text(f"{text}\n", encoding="utf-8")
        described = _described(classifier, name, architecture)
        (folder / FILE_NAME).write_text(tomlkit.dumps(described), encoding="utf-8")
    except OSError as error:
        raise ModelFolderError(folder, f"cannot be written: {error}") from error


def _described(classifier: Classifier, name: str, architecture: str) -> dict[str, object]:
    described: dict[str, object] = {"name": name, "architecture": architecture, "weights": _WEIGHTS}
    if classifier.labels:
        described["labels"] = _LABELS
    if classifier.features is not None:
        described |= {"features": classifier.features.node, "feature_form": classifier.features.form}
    elif not classifier.labels:
        described["classes"] = 0
    return {**described, "transform": asdict(classifier.transform)}
