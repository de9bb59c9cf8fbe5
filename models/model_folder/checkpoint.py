"""Read weights from a file: tensors by name, never code. `weights_only=True` refuses pickles with code. Sizes that a
file states are compared with its own size first, because few bytes can claim more tensors than fit into memory."""

from __future__ import annotations

import io
import pickletools
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from pickle import UnpicklingError
from typing import IO

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from models.hardware import memory
from models.interface.errors import ModelFolderError
from models.model_folder.description import MIB

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

# Before PyTorch 1.6, three pickles come first: a magic number, a version and the word sizes of the system.
_PICKLES_BEFORE_THE_OBJECT = 3

# Modules of the classes in a state dict.
_PLAIN_MODULES = ("collections", "torch", "torch._utils", "torch._tensor", "torch.storage")

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
            what = f"its header would have {header_bytes} bytes, and at most {_MOST_HEADER_BYTES} are read"
            raise ModelFolderError(file, f"is no whole safetensors file: {what}")
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
        raise ModelFolderError(file, _remedy(file) or _BROKEN_CHECKPOINT) from error
    return held


def _check_archive(file: Path) -> None:
    """Compare the unpacked size, from the archive's directory, with the size of the file and with free memory."""
    try:
        size = file.stat().st_size
        with file.open("rb") as stream:
            zipped = stream.read(len(_ZIP)) == _ZIP
        unpacked = size
        if zipped:
            with zipfile.ZipFile(file) as archive:
                unpacked = sum(part.file_size for part in archive.infolist())
    except (OSError, zipfile.BadZipFile) as error:
        raise ModelFolderError(file, _BROKEN_CHECKPOINT) from error
    if unpacked > max(_MOST_UNPACKED * size, MIB):
        what = f"unpacks to {_megabytes(unpacked)}, more than {_MOST_UNPACKED} times its size"
        raise ModelFolderError(file, f"has {_megabytes(size)} and says that it {what}")
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


@dataclass(frozen=True, slots=True)
class _Program:
    """A parsed pickle. `classes`: what it would import, apart from what tensors need."""

    is_dict: bool
    classes: tuple[str, ...]
    texts: frozenset[str]


def _remedy(file: Path) -> str | None:
    """Return what a refused file holds instead of plain tensors, and how to save those; None if it is damaged or of
    another kind. Its pickle is parsed and never run."""
    if _is_torchscript(file):
        tensors = f"torch.jit.load({file.name!r}).state_dict()"
        return f"is a TorchScript program, which is not run here. {_recipe(tensors)}"
    program = _program(file)
    if program is None or not program.classes:
        return None
    loaded = f"torch.load({file.name!r}, weights_only=False)"
    named = ", ".join(program.classes[:3])
    if not program.is_dict:
        recipe = _recipe(f"{loaded}.state_dict()")
        return f"is a whole pickled model ({named}), which is code, and not run here. {recipe}"
    wrapper = next((f"[{key!r}]" for key in WRAPPERS if key in program.texts), "")
    return f"holds pickled objects ({named}), which are code, and not run here. {_recipe(loaded + wrapper)}"


def _recipe(tensors: str) -> str:
    return (
        f"Where you trust it, save the weights alone: python -c \"import torch; torch.save({tensors}, 'weights.pt')\""
    )


def _is_torchscript(file: Path) -> bool:
    try:
        with zipfile.ZipFile(file) as archive:
            return any("/code/" in name for name in archive.namelist())
    except (zipfile.BadZipFile, OSError):
        return False


def _program(file: Path) -> _Program | None:
    try:
        if not zipfile.is_zipfile(file):
            with file.open("rb") as stream:
                for _ in range(_PICKLES_BEFORE_THE_OBJECT):
                    _read(stream)
                return _read(stream)
        with zipfile.ZipFile(file) as archive:
            member = next((name for name in archive.namelist() if name.endswith("/data.pkl")), None)
            return None if member is None else _read(io.BytesIO(archive.read(member)))
    except (ValueError, OSError, zipfile.BadZipFile):
        return None


def _read(stream: IO[bytes]) -> _Program:
    """Parse the next pickle of `stream`. Raises ValueError if there is none."""
    operations = [(operation.name, argument) for operation, argument, _ in pickletools.genops(stream)]
    imported = [str(argument).split(" ", 1) for name, argument in operations if name == "GLOBAL"]
    # The first object that it creates is the result: a dict, or an instance of a class.
    made = next((made for made in operations if made[0] in {"EMPTY_DICT", "GLOBAL"}), ("", None))
    return _Program(
        is_dict=made in {("EMPTY_DICT", None), ("GLOBAL", "collections OrderedDict")},
        classes=tuple(dict.fromkeys(f"{module}.{name}" for module, name in imported if module not in _PLAIN_MODULES)),
        texts=frozenset(argument for _, argument in operations if isinstance(argument, str)),
    )
