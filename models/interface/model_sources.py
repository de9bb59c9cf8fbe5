"""What an operator states: SOURCE or NAME=SOURCE for a model, values of model.toml, and paths that begin with ~."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from models.interface.errors import StartError

# Words joined by slashes, for example timm/resnet18 or resnet50:random. Names appear in URLs, logs and metrics.
MODEL_NAME = r"[A-Za-z0-9_][A-Za-z0-9_.:-]*(/[A-Za-z0-9_][A-Za-z0-9_.:-]*)*"

# KServe's protocol writes an operation behind the name: POST /v1/models/NAME:predict.
OPERATIONS = (":predict", ":explain")

Precision = Literal["fp32", "bf16", "fp16", "int8"]

Interpolation = Literal["bilinear", "bicubic"]

# How an image becomes a square. crop: resize the shorter side and cut off the rest. stretch: resize both sides.
# pad: resize the longer side, and fill the rest with the mean colour.
Fit = Literal["crop", "stretch", "pad"]

# How the output of an inner layer is served: its mean over positions, or flattened.
FeatureForm = Literal["pooled", "map"]

_NAMED = re.compile(rf"(?P<name>{MODEL_NAME})=(?P<source>.+)")


@dataclass(frozen=True, slots=True)
class ServedAs:
    """The [serve] table of a model.toml. Each key overrides a setting of the server; None leaves it as it is.

    `quantized`: set for int8 and only then, the .xml of an OpenVINO network; its weights are in the .bin file of the
    same name.
    """

    precision: Precision | None = None
    quantized: Path | None = None
    max_batch_size: int | None = None


def split_name(stated: str) -> tuple[str | None, str]:
    """Return (NAME, SOURCE) of NAME=SOURCE, else (None, `stated`). A path such as ./a=b has no name."""
    found = _NAMED.fullmatch(stated)
    return (None, stated) if found is None else (found["name"], found["source"])


def check_name(name: str) -> str:
    """Return `name` if a model can be served under it. Raises StartError."""
    if name.endswith(OPERATIONS):
        raise StartError(f"no model can be named {name}: paths that end so are operations on a model; use another name")
    return name


def expand_home(path: Path) -> Path:
    """Return `path` with ~ replaced by the home folder. Raises StartError if the home folder is unknown: HOME is unset
    and the user has no entry in /etc/passwd."""
    try:
        return path.expanduser()
    except RuntimeError:
        raise StartError(
            f"{path} cannot be expanded, because the home folder is unknown; set HOME, or use a path without ~"
        ) from None
