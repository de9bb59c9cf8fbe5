"""Neither gradless nor its libraries report usage to other hosts."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

# Each look-up and each connection of the process, whichever thread or library makes it.
_WATCHED = """
import sys

connections = []


def watch(event, arguments):
    if event in ("socket.getaddrinfo", "socket.gethostbyname", "socket.connect"):
        connections.append((event, repr(arguments)))


sys.addaudithook(watch)
from app.cli import app

try:
    app(sys.argv[1:])
finally:
    print("CONNECTIONS", connections, file=sys.stderr)
"""


def test_serving_opens_no_connection_and_writes_nothing_to_the_home_folder(small_model: Path, tmp_path: Path) -> None:
    home = tmp_path / "home"
    home.mkdir()
    # Without the variables by which OpenVINO detects CI, where it reports nothing.
    environment = {name: value for name, value in os.environ.items() if name not in {"CI", "TF_BUILD", "JENKINS_URL"}}
    environment |= {
        "HOME": str(home),
        "GRADLESS_BACKEND": "openvino",
        "GRADLESS_CACHE_FOLDER": str(tmp_path / "cache"),
    }
    # The arm `grad` is PyTorch's own forward.
    arms = ["--arms", "grad,served", "--batch-size", "1", "--iterations", "1"]
    arguments = ["compare", str(small_model), *arms]
    done = subprocess.run(
        [sys.executable, "-c", _WATCHED, *arguments],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )

    assert done.returncode == 0, done.stderr
    assert done.stderr.splitlines()[-1] == "CONNECTIONS []"
    assert list(home.iterdir()) == []
