"""Read weights from a file: tensors by name, never code. `weights_only=True` refuses pickles with code. Sizes that a
file states are compared with its own size first, because few bytes can claim more tensors than fit into memory."""

from __future__ import annotations

import zipfile
from collections.abc import Mapping
from pathlib import Path
from pickle import UnpicklingError

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from models.hardware import memory
from models.interface.errors import ModelFolderError
from models.model_folder.description import MIB
from models.model_folder.pickled import remedy

SUFFIXES = (".safetensors", ".pt", ".pth", ".bin", ".ckpt")

# Keys under which training scripts save the tensors, next to the epoch and the optimizer.
WRAPPERS = ("state_dict", "model_state_dict", "model")

_MOST_KEYS_LISTED = 10

# Highest ratio of unpacked to packed size. torch.save does not compress, and zip saves a tenth.
_MOST_UNPACKED = 4

# Names and shapes of tensors; the largest networks need a megabyte.
_MOST_HEADER_BYTES = 16 * MIB
_HEADER_LENGTH_BYTES = 8

_ZIP = b"PK\x03\x04"

_BROKEN_CHECKPOINT = "is no checkpoint that torch.save has written, or not the whole of one"

# Exceptions of torch.load for damaged files.
_BROKEN = (UnpicklingError, RuntimeError, ValueError, TypeError, LookupError, AttributeError, EOFError, OSError)


def read(file: Path) -> dict[str, torch.Tensor]:
    """Return the tensors of a checkpoint by name, on the CPU, in their saved types; other values are ignored. Raises
    ModelFolderError."""
    _check_readable(file)
    held = _unwrapped(_safetensors(file) if file.suffix == ".safetensors" else _checkpoint(file))
    if not isinstance(held, Mapping):
        raise ModelFolderError(file, f"holds a {type(held).__name__}, and not tensors by name, as a state dict does")
    tensors = {str(name): value.detach() for name, value in held.items() if isinstance(value, torch.Tensor)}
    for name, tensor in tensors.items():
        _check_tensor(file, name, tensor)
    if not tensors:
        keys = ", ".join(map(str, list(held)[:_MOST_KEYS_LISTED])) or "nothing"
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
        with file.open("rb") as stream:
            header_bytes = int.from_bytes(stream.read(_HEADER_LENGTH_BYTES), "little")
        if header_bytes > _MOST_HEADER_BYTES:
            raise ModelFolderError(
                file,
                f"is no whole safetensors file: its header would have {header_bytes} bytes, and at most "
                f"{_MOST_HEADER_BYTES} are read",
            )
        _check_memory(file, file.stat().st_size)
        return load_file(file)
    except (SafetensorError, OSError) as error:
        raise ModelFolderError(file, f"is no whole safetensors file: {error}") from error


def _checkpoint(file: Path) -> object:
    _check_archive(file)
    try:
        held: object = torch.load(file, map_location="cpu", weights_only=True)
    except _BROKEN as error:
        # Not PyTorch's message, which recommends weights_only=False.
        raise ModelFolderError(file, remedy(file, WRAPPERS) or _BROKEN_CHECKPOINT) from error
    return held


def _check_archive(file: Path) -> None:
    """Compare the unpacked size, from the archive's directory, with the size of the file and with free memory."""
    try:
        size = file.stat().st_size
        with file.open("rb") as stream:
            zipped = stream.read(len(_ZIP)) == _ZIP
        if zipped:
            with zipfile.ZipFile(file) as archive:
                unpacked = sum(part.file_size for part in archive.infolist())
        else:
            unpacked = size
    except (OSError, zipfile.BadZipFile) as error:
        raise ModelFolderError(file, _BROKEN_CHECKPOINT) from error
    if unpacked > max(_MOST_UNPACKED * size, MIB):
        raise ModelFolderError(
            file,
            f"has {_megabytes(size)} and says that it unpacks to {_megabytes(unpacked)}, more than {_MOST_UNPACKED} "
            "times its size",
        )
    _check_memory(file, unpacked)


def _check_memory(file: Path, needed: int) -> None:
    free = memory.free_bytes(torch.device("cpu"))
    if needed > free:
        raise ModelFolderError(file, f"needs {_megabytes(needed)} of memory, and {_megabytes(free)} are free")


def _check_tensor(file: Path, name: str, tensor: torch.Tensor) -> None:
    """Refuse tensors whose copy would be much larger than their storage: expanded views, sparse and meta tensors."""
    if tensor.layout != torch.strided or tensor.is_meta:
        raise ModelFolderError(file, f"holds {name} without all of its numbers, as a sparse or a meta tensor")
    if tensor.nbytes > max(_MOST_UNPACKED * tensor.untyped_storage().nbytes(), MIB):
        raise ModelFolderError(
            file, f"holds {name} as {tuple(tensor.shape)}, and only {tensor.untyped_storage().nbytes()} bytes of it"
        )


def _megabytes(count: int) -> str:
    return f"{count / 1e6:.1f} MB"


def _unwrapped(held: object) -> object:
    while isinstance(held, Mapping):
        inner = next((held[key] for key in WRAPPERS if isinstance(held.get(key), Mapping)), None)
        if inner is None:
            break
        held = inner
    return held
