"""Write a classifier as a model folder, which can be moved."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

import tomlkit
from safetensors.torch import save

from models.interface.errors import ModelFolderError
from models.model_folder.description import FILE_NAME
from models.model_folder.sizes import SizesByLayer
from models.networks.specs import Classifier, ServedAs

_WEIGHTS, _LABELS, _PRUNED = "weights.safetensors", "labels.json", "pruned.json"


def write(
    folder: Path,
    classifier: Classifier,
    *,
    name: str,
    architecture: str,
    pruned: SizesByLayer | None = None,
    served_as: ServedAs | None = None,
) -> None:
    """Write `classifier` as a model folder: its weights in their own types, its labels, and a model.toml with its whole
    transform. Files of `served_as` are in the folder already.

    The network of `architecture` must fit the weights, apart from the sizes of the layers in `pruned`. model.toml is
    written last, so that a partly written folder is no model folder. Raises ModelFolderError if there is one already,
    or it cannot be written.
    """
    if (folder / FILE_NAME).exists():
        raise ModelFolderError(folder / FILE_NAME, "is there already, and is not overwritten")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        # Copies, because safetensors refuses tensors that share memory.
        state = {
            key: tensor.detach().cpu().contiguous().clone() for key, tensor in classifier.module.state_dict().items()
        }
        # Not save_file, whose files only their owner can read.
        (folder / _WEIGHTS).write_bytes(save(state))
        described: dict[str, object] = {"name": name, "architecture": architecture, "weights": _WEIGHTS}
        if pruned:
            (folder / _PRUNED).write_text(json.dumps(pruned, indent=0) + "\n", encoding="utf-8")
            described["pruned"] = _PRUNED
        if classifier.labels:
            text = json.dumps(classifier.labels, ensure_ascii=False, indent=0)
            (folder / _LABELS).write_text(f"{text}\n", encoding="utf-8")
        described |= _output_keys(classifier)
        if served_as is not None:
            described["serve"] = _serve(folder, served_as)
        _write_toml(folder, described)
    except OSError as error:
        raise ModelFolderError(folder, f"cannot be written: {error}") from error


def _output_keys(classifier: Classifier) -> dict[str, object]:
    described: dict[str, object] = {}
    if classifier.labels:
        described["labels"] = _LABELS
    if classifier.features is not None:
        described |= {"features": classifier.features.node, "feature_form": classifier.features.form}
    elif not classifier.labels:
        described["classes"] = 0
    return {**described, "transform": asdict(classifier.transform)}


def _serve(folder: Path, served_as: ServedAs) -> Mapping[str, str]:
    if served_as.quantized is None:
        return {"precision": served_as.precision}
    return {"precision": served_as.precision, "quantized": str(served_as.quantized.relative_to(folder))}


def _write_toml(folder: Path, described: Mapping[str, object]) -> None:
    (folder / FILE_NAME).write_text(tomlkit.dumps(described), encoding="utf-8")
