"""Converted networks on disk, for later starts. Entries are written atomically, and verified by digests when read.

An entry is a folder that is moved into place by one rename, so that concurrent processes do not mix their files:

    openvino-KEY/network.xml, network.bin, digests.json

If the cache cannot be used, the network is converted again and the reason is logged; the start never fails.
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

# Prefix of folders that are not yet moved into place.
_UNFINISHED = "unfinished-"
# Age after which a leftover of a killed process is removed. No conversion takes as long to write.
_LEFTOVER_S = 24 * 3600


class ConversionCache:
    """The entries of a folder, which need not exist. Several processes may use it at the same time."""

    def __init__(self, core: openvino.Core, folder: Path) -> None:
        self._core = core
        self._folder = folder

    def read(self, name: str) -> openvino.Model | None:
        """Return the network of that name. None if there is none, or if it is damaged, which is logged."""
        try:
            entry = self._folder.expanduser() / name
            if not entry.exists():
                return None
            stated = json.loads((entry / _DIGESTS).read_bytes())
            if stated != _digests(entry):
                raise ValueError("its files have changed since they were written")  # noqa: TRY301
            return self._core.read_model(entry / _NETWORK)
        # RuntimeError comes from OpenVINO, and from expanduser() for a user without a home.
        except (OSError, ValueError, RuntimeError) as error:
            _log.warning("%s in %s cannot be used, so it is converted again: %s", name, self._folder, _line(error))
            return None

    def keep(self, network: openvino.Model, name: str) -> None:
        """Write `network` under `name`, and replace an earlier entry. A failure is logged."""
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
            # Read it back: on a full disk OpenVINO may write part of a file without an error.
            self._core.read_model(unfinished / _NETWORK)
            (unfinished / _DIGESTS).write_text(json.dumps(_digests(unfinished)), encoding="utf-8")
            for path in (*unfinished.iterdir(), unfinished):
                _sync(path)
            _put(unfinished, entry, aside=Path(temporary) / "replaced")
            _sync(folder)


def save(network: openvino.Model, file: Path) -> None:
    """Write `network` to `file`, a .xml, and its weights to the .bin file of the same name. Raises OSError."""
    try:
        openvino.save_model(network, file, compress_to_fp16=False)
    except RuntimeError as error:
        # OpenVINO gives no reason; most often the disk is full.
        free_mb = shutil.disk_usage(file.parent).free / 1e6
        raise OSError(f"OpenVINO cannot write {file}, {free_mb:.0f} MB are free: {_line(error)}") from error


def _put(finished: Path, entry: Path, *, aside: Path) -> None:
    # A folder cannot be renamed over another. The existing one is damaged, or another process has just written it.
    with suppress(FileNotFoundError):
        entry.rename(aside)
    try:
        finished.rename(entry)
    except OSError as error:
        # Another process was faster, and its network is the same.
        if error.errno not in {errno.ENOTEMPTY, errno.EEXIST}:
            raise


def _digests(entry: Path) -> dict[str, str]:
    """Return the digest of each file, and the name of the entry, which detects an entry copied over another."""
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
    """Flush a file or a folder to disk, because a rename may be persisted before the content."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _line(error: Exception) -> str:
    """Return the last line of the message. The first line of OpenVINO's messages is a position in its sources."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__
