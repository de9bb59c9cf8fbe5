"""Unchanged clients of other servers, each in an environment of its own, because they conflict.

NAME.txt has the requirements of an environment, which `make clients` makes in .venv-clients/NAME. NAME_cases.py is what
pytest runs there, with native.py beside it. Without the environment these tests are skipped.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from models.images.samples import draw, encode
from observe.processes import free_port, gradless

_ENVIRONMENTS = Path(__file__).parents[2] / ".venv-clients"
_SIDE = 224
_PATIENCE_S = 100

Run = Callable[..., str]


@pytest.fixture(scope="session")
def grpc_address() -> str:
    """Host and port of gRPC."""
    return f"localhost:{free_port()}"


@pytest.fixture(scope="session")
def address(tmp_path_factory: pytest.TempPathFactory, warm_command: Any, grpc_address: str) -> Iterator[str]:
    """URL of a server with the default model and default settings, and with gRPC."""
    settings = {"GRADLESS_GRPC_PORT": grpc_address.partition(":")[2]}
    with gradless(tmp_path_factory.mktemp("server"), settings, start=warm_command.start) as served:
        yield served


@pytest.fixture(scope="session")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of two images, as files and as pixels of the default model, (3, 224, 224) uint8."""
    folder = tmp_path_factory.mktemp("images")
    for name, sample in (("clock", "clock"), ("light", "traffic-light")):
        picture = draw(sample)
        (folder / f"{name}.jpg").write_bytes(encode(picture, "JPEG"))
        pixels = np.asarray(picture.resize((_SIDE, _SIDE))).transpose(2, 0, 1)
        np.save(folder / f"{name}.npy", np.ascontiguousarray(pixels))
    return folder


@pytest.fixture
def run(address: str, grpc_address: str, images: Path) -> Run:
    """Run Python of a client's environment in the folder of images, and return what it prints."""

    def run_in(client: str, *arguments: str) -> str:
        python = _ENVIRONMENTS / client / "bin/python"
        if not python.exists():
            pytest.skip(f"`make clients` installs {client}")
        done = subprocess.run(
            [python, *arguments],
            cwd=images,
            env=os.environ | {"GRADLESS_URL": address, "GRADLESS_GRPC": grpc_address, "PYTHONDONTWRITEBYTECODE": "1"},
            capture_output=True,
            text=True,
            timeout=_PATIENCE_S,
            check=False,
        )
        assert done.returncode == 0, f"{done.stdout[-4000:]}\n{done.stderr[-4000:]}"
        return done.stdout

    return run_in
