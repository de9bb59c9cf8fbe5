"""Weights out of a file: tensors by name, and never code. Nothing is unpickled that `weights_only=True` refuses."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from pickle import UnpicklingError

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from models.errors import ModelFolderError
from models.model_folder.pickled import remedy

SUFFIXES = (".safetensors", ".pt", ".pth", ".bin", ".ckpt")

# What training scripts put around the tensors, with the epoch and the optimizer beside them.
WRAPPERS = ("state_dict", "model_state_dict", "model")

_MOST_KEYS_TOLD = 10

# torch.load raises all of these, by how and where a file is broken.
_BROKEN = (UnpicklingError, RuntimeError, ValueError, TypeError, LookupError, AttributeError, EOFError, OSError)


def read(file: Path) -> dict[str, torch.Tensor]:
    """The tensors of a checkpoint by name, on the CPU, as they were saved; other values beside them are left out.
    Raises ModelFolderError."""
    _check_readable(file)
    held = _unwrapped(_safetensors(file) if file.suffix == ".safetensors" else _checkpoint(file))
    if not isinstance(held, Mapping):
        raise ModelFolderError(file, f"holds a {type(held).__name__}, and not tensors by name, as a state dict does")
    tensors = {str(name): value.detach() for name, value in held.items() if isinstance(value, torch.Tensor)}
    if not tensors:
        keys = ", ".join(map(str, list(held)[:_MOST_KEYS_TOLD])) or "nothing"
        raise ModelFolderError(file, f"holds no tensors by name, as a state dict does; it holds {keys}")
    return tensors


def _check_readable(file: Path) -> None:
    try:
        file.open("rb").close()
    except PermissionError as error:
        raise ModelFolderError(file, "is not readable by this user") from error
    except OSError as error:
        raise ModelFolderError(file, f"cannot be read: {error.strerror}") from error


def _safetensors(file: Path) -> object:
    try:
        return load_file(file)
    except (SafetensorError, OSError) as error:
        raise ModelFolderError(file, f"is no whole safetensors file: {error}") from error


def _checkpoint(file: Path) -> object:
    try:
        held: object = torch.load(file, map_location="cpu", weights_only=True)
    except _BROKEN as error:
        # Not in PyTorch's words, which advise to read it with code and all.
        broken = "is no checkpoint that torch.save has written, or not the whole of one"
        raise ModelFolderError(file, remedy(file, WRAPPERS) or broken) from error
    return held


def _unwrapped(held: object) -> object:
    while isinstance(held, Mapping):
        inner = next((held[key] for key in WRAPPERS if isinstance(held.get(key), Mapping)), None)
        if inner is None:
            break
        held = inner
    return held
