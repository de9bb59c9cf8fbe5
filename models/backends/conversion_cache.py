"""Converted networks on disk, for later starts to read: written whole or not at all, and read only when they are as
they were written.

An entry is a folder, put in place by one rename, so that processes that convert at once do not mix their files:

    openvino-KEY/network.xml, network.bin, digests.json

A cache that cannot be used costs the time of a conversion and a line of log, never the start.
"""

from __future__ import annotations

import errno
import hashlib
import json
import logging
import os
import shutil
import tempfile
from contextlib import suppress
from pathlib import Path
from time import time

import openvino

_log = logging.getLogger(__name__)

_NETWORK = "network.xml"
_WEIGHTS = "network.bin"
_DIGESTS = "digests.json"

# Of what is written and not yet in place.
_UNFINISHED = "unfinished-"
# A process that was killed leaves it behind. None takes as long to write.
_LEFTOVER_S = 24 * 3600


class ConversionCache:
    """The entries of a folder, which need not exist. Other processes may use it at the same time."""

    def __init__(self, core: openvino.Core, folder: Path) -> None:
        self._core = core
        self._folder = folder

    def read(self, name: str) -> openvino.Model | None:
        """The network kept under `name`. None if there is none, or if it is damaged, which is logged."""
        try:
            entry = self._folder.expanduser() / name
            if not entry.exists():
                return None
            stated = json.loads((entry / _DIGESTS).read_bytes())
            if stated != _digests(entry):
                raise ValueError("its files are not those that were written")  # noqa: TRY301
            return self._core.read_model(entry / _NETWORK)
        # RuntimeError is OpenVINO's, and that of a user without a home.
        except (OSError, ValueError, RuntimeError) as error:
            _log.warning("%s in %s cannot be used, so it is converted again: %s", name, self._folder, _line(error))
            return None

    def keep(self, network: openvino.Model, name: str) -> None:
        """Write it under `name`, in the place of what is there. If that cannot be, it is logged."""
        try:
            self._write(network, self._folder.expanduser() / name)
        except (OSError, RuntimeError) as error:
            _log.warning(
                "%s cannot be kept in %s, so the next start converts it again: %s", name, self._folder, _line(error)
            )

    def _write(self, network: openvino.Model, entry: Path) -> None:
        folder = entry.parent
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        _remove_leftovers(folder)
        with tempfile.TemporaryDirectory(prefix=_UNFINISHED, dir=folder, ignore_cleanup_errors=True) as temporary:
            unfinished = Path(temporary) / entry.name
            unfinished.mkdir()
            save(network, unfinished / _NETWORK)
            # A full disk may have taken the beginning of a file without a word.
            self._core.read_model(unfinished / _NETWORK)
            (unfinished / _DIGESTS).write_text(json.dumps(_digests(unfinished)), encoding="utf-8")
            for path in (*unfinished.iterdir(), unfinished):
                _sync(path)
            _put(unfinished, entry, aside=Path(temporary) / "replaced")
            _sync(folder)


def save(network: openvino.Model, file: Path) -> None:
    """Write `network` to `file`, a .xml, and its weights beside it. Raises OSError."""
    try:
        openvino.save_model(network, file, compress_to_fp16=False)
    except RuntimeError as error:
        # OpenVINO does not say why: most often the disk is full.
        free_mb = shutil.disk_usage(file.parent).free / 1e6
        raise OSError(f"OpenVINO cannot write {file}, {free_mb:.0f} MB are free: {_line(error)}") from error


def _put(finished: Path, entry: Path, *, aside: Path) -> None:
    # A folder cannot be renamed over another. What is there is damaged, or was written by another process meanwhile.
    with suppress(FileNotFoundError):
        entry.rename(aside)
    try:
        finished.rename(entry)
    except OSError as error:
        # Another process was faster, and its network is as good.
        if error.errno not in {errno.ENOTEMPTY, errno.EEXIST}:
            raise


def _digests(entry: Path) -> dict[str, str]:
    """By file. With the entry's name: one that was copied over another is not that other."""
    digests = {"entry": entry.name}
    for name in (_NETWORK, _WEIGHTS):
        with (entry / name).open("rb") as file:
            digests[name] = hashlib.file_digest(file, "sha256").hexdigest()
    return digests


def _remove_leftovers(folder: Path) -> None:
    for path in folder.glob(f"{_UNFINISHED}*"):
        with suppress(OSError):
            if path.stat().st_mtime < time() - _LEFTOVER_S:
                shutil.rmtree(path)


def _sync(path: Path) -> None:
    """Have the disk hold a file, or the names in a folder: a rename may reach it before what was written."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _line(error: Exception) -> str:
    """The first line of what OpenVINO has to say is where in its sources it says so; the last says what it is."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__
