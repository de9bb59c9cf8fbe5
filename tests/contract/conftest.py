"""One real server for everybody else's clients."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

START_TIMEOUT_S = 90


@pytest.fixture(scope="session")
def address() -> Iterator[str]:
    """Where the default model is served with default settings."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("GRADLESS_")}
    found: list[str] = []
    ready = threading.Event()
    with (
        tempfile.TemporaryFile("w+") as log,
        subprocess.Popen(
            [Path(sys.executable).parent / "gradless", "serve"],
            env=environment | {"GRADLESS_PORT": "0"},
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
        ) as process,
    ):

        def read() -> None:
            assert process.stdout is not None
            for line in process.stdout:
                if match := re.search(r"gradless serves .*? at (http://\S+)", line):
                    found.append(match[1])
                    ready.set()
            ready.set()

        reader = threading.Thread(target=read, daemon=True)
        reader.start()
        try:
            ready.wait(START_TIMEOUT_S)
            if not found:
                log.seek(0)
                pytest.fail(f"the server did not start:\n{log.read()}")
            yield found[0]
        finally:
            process.kill()
            reader.join()
