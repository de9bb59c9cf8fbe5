"""Run `gradless` or scripts in forks of a process that has imported PyTorch, because an import takes four seconds.

Its argument is the descriptor of a socket. A message there starts a command: JSON with argv, environ and folder, and
the descriptors of stdout, stderr and a socket. That socket receives the command's process id at once and its exit
status, as subprocess has it, at the end.
"""

from __future__ import annotations

import contextlib
import json
import os
import runpy
import socket
import sys
from typing import Any

# More than arguments and environment of any command.
_MOST_REQUEST_BYTES = 1 << 20


def _serve(control: socket.socket) -> None:
    """Returns in a fork, which is to be the command."""
    while True:
        message, descriptors, _, _ = socket.recv_fds(control, _MOST_REQUEST_BYTES, 3)
        if not message:
            os._exit(0)
        if os.fork() == 0:
            control.close()
            with socket.socket(fileno=descriptors[2]) as status:
                if _fork_and_mind(status):
                    os._exit(0)
            _become(json.loads(message), descriptors[:2])
            return
        for descriptor in descriptors:
            os.close(descriptor)
        _let_go_of_those_that_have_ended()


def _fork_and_mind(status: socket.socket) -> bool:
    """Return False in the fork, and True in the process that has reported its end."""
    child = os.fork()
    if child == 0:
        return False
    status.send(str(child).encode())
    _, ended = os.waitpid(child, 0)
    # Broken if the parent has ended.
    with contextlib.suppress(BrokenPipeError):
        status.send(str(os.waitstatus_to_exitcode(ended)).encode())
    return True


def _let_go_of_those_that_have_ended() -> None:
    while os.waitpid(-1, os.WNOHANG)[0]:
        pass


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
    import app.server.server  # noqa: F401, PLC0415
    import models.serving.runtime  # noqa: F401, PLC0415
    from app.cli import main as gradless  # noqa: PLC0415

    with socket.socket(fileno=int(sys.argv[1])) as control:
        _serve(control)
    if sys.argv[0].endswith(".py"):
        runpy.run_path(sys.argv[0], run_name="__main__")
    else:
        gradless()


if __name__ == "__main__":
    main()
