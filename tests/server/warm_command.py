"""The command `gradless` in forks of a process that has imported PyTorch and does nothing else: importing takes some
four seconds of a core, and the tests run commands by the dozen. Its argument is the descriptor of a socket, on which it
is asked for one command after another and answers with their exit statuses."""

from __future__ import annotations

import json
import os
import socket
import sys
from typing import Any

# More than arguments and environment of any command.
_MOST_REQUEST_BYTES = 1 << 20


def _be_asked(asked: socket.socket) -> None:
    """Returns in a fork, which is to be the command."""
    while True:
        message, descriptors, _, _ = socket.recv_fds(asked, _MOST_REQUEST_BYTES, 2)
        if not message:
            os._exit(0)
        child = os.fork()
        if child == 0:
            _become(json.loads(message), descriptors)
            return
        for descriptor in descriptors:
            os.close(descriptor)
        _, status = os.waitpid(child, 0)
        asked.send(str(os.waitstatus_to_exitcode(status)).encode())


def _become(request: dict[str, Any], descriptors: list[int]) -> None:
    for standard, descriptor in zip((1, 2), descriptors, strict=True):
        os.dup2(descriptor, standard)
        os.close(descriptor)
    sys.argv = request["argv"]
    os.environ.clear()
    os.environ.update(request["environ"])
    os.chdir(request["folder"])


def main() -> None:
    # Here, not above: processes that commands start import this file as they would the command's.
    import models.serving  # noqa: F401, PLC0415
    from app.cli import main as gradless  # noqa: PLC0415

    with socket.socket(fileno=int(sys.argv[1])) as asked:
        _be_asked(asked)
    gradless()


if __name__ == "__main__":
    main()
