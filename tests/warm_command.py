"""Run the command `gradless`, or a script, in forks of a process that has imported PyTorch.

Importing takes five seconds of a core, and taking everything down at exit another one and a half. The tests run
commands and servers by the hundred.

The argument is the descriptor of a listening socket; the process ends with its last connection. Each message requests
one command: JSON with argv, environ, folder, new_session and ignored (signals), and the descriptors of stdout, of
stderr and of a socket. That socket receives the process id of the command at once, and its exit status, as subprocess
has it, at the end."""

from __future__ import annotations

import atexit
import contextlib
import gc
import json
import os
import runpy
import selectors
import signal
import socket
import sys
from typing import Any, NamedTuple, cast

# More than arguments and environment of any command.
_MOST_REQUEST_BYTES = 1 << 20


# The exit status of the command, once it is known.
_status: list[int] = []


@atexit.register
def _skip_the_teardown_of_modules() -> None:
    """End the process of a command that called sys.exit. Registered first, so it runs after the other exit handlers."""
    if _status:
        # Python itself reports output that cannot be written, with a status of its own.
        with contextlib.suppress(OSError):
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(_status[0])


class _Command(NamedTuple):
    """A fork, and the socket that receives its process id and exit status."""

    pid: int
    status: socket.socket

    def tell(self, number: int) -> None:
        # Broken if the process that started it has ended.
        with contextlib.suppress(BrokenPipeError):
            self.status.send(str(number).encode())

    def end(self) -> None:
        """Report the exit status, once there is one."""
        self.tell(os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1]))
        self.status.close()


def _serve(listener: socket.socket) -> None:
    """Returns in a fork, which is to be the command."""
    controls = {listener.accept()[0]}
    with selectors.DefaultSelector() as selector:
        for each in (listener, *controls):
            selector.register(each, selectors.EVENT_READ)
        # Another worker may have connected since the last one closed.
        while controls or selector.select(0):
            for key, _ in selector.select():
                if isinstance(key.data, _Command):
                    selector.unregister(key.fileobj)
                    os.close(key.fd)
                    key.data.end()
                elif key.fileobj is listener:
                    control, _ = listener.accept()
                    controls.add(control)
                    selector.register(control, selectors.EVENT_READ)
                elif _became_a_command(cast("socket.socket", key.fileobj), controls, selector):
                    return
    os._exit(0)


def _became_a_command(control: socket.socket, controls: set[socket.socket], selector: selectors.BaseSelector) -> bool:
    """Read a message. Return True in a fork, which has none of the sockets of this process."""
    message, descriptors, _, _ = socket.recv_fds(control, _MOST_REQUEST_BYTES, 3)
    if not message:
        selector.unregister(control)
        controls.remove(control)
        control.close()
        return False
    status = socket.socket(fileno=descriptors.pop())
    pid = os.fork()
    if pid == 0:
        status.close()
        for key in selector.get_map().values():
            if isinstance(key.data, _Command):
                os.close(key.fd)
                key.data.status.close()
            else:
                cast("socket.socket", key.fileobj).close()
        _become(json.loads(message), descriptors)
        return True
    for output in descriptors:
        os.close(output)
    command = _Command(pid, status)
    command.tell(pid)
    selector.register(os.pidfd_open(pid), selectors.EVENT_READ, command)
    return False


def _become(request: dict[str, Any], descriptors: list[int]) -> None:
    for standard, descriptor in zip((1, 2), descriptors, strict=True):
        os.dup2(descriptor, standard)
        os.close(descriptor)
    if request["new_session"]:
        os.setsid()
    for number in request["ignored"]:
        signal.signal(number, signal.SIG_IGN)
    sys.argv = request["argv"]
    os.environ.clear()
    os.environ.update(request["environ"])
    os.chdir(request["folder"])


def main() -> None:
    # Here, not above: processes that commands start import this file as they would the command's.
    import warm_fork_server  # noqa: PLC0415

    import app.reports.pages  # noqa: PLC0415
    import app.reports.terminal  # noqa: PLC0415
    import app.server.server  # noqa: F401, PLC0415
    import models.backends.openvino  # noqa: PLC0415
    import models.offline.job  # noqa: PLC0415
    import models.serving.runtime  # noqa: PLC0415
    import models.workers.worker_runtime  # noqa: F401, PLC0415
    from app.cli import main as gradless  # noqa: PLC0415

    # A collection in a fork would copy every page that holds an object.
    gc.collect()
    gc.freeze()
    with socket.socket(fileno=int(sys.argv[1])) as listener:
        _serve(listener)
    if os.environ.get("GRADLESS_HTTP_WORKERS", "0") != "0":
        warm_fork_server.prepare()
    try:
        if sys.argv[0].endswith(".py"):
            sys.path[0] = os.path.dirname(sys.argv[0])  # noqa: PTH120 - a string, as Python has it
            runpy.run_path(sys.argv[0], run_name="__main__")
        else:
            gradless()
    except SystemExit as left:
        if left.code is None or isinstance(left.code, int):
            _status.append(left.code or 0)
        raise
    _status.append(0)


if __name__ == "__main__":
    main()
