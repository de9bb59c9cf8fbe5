"""A container without an engine: `unshare --mount --pid --net --fork python contained.py VENV BORROWED CACHE MODELS
COMMAND`

The root is read-only and there is no network but loopback; VENV is at /opt/gradless, BORROWED, where PyTorch is, at
/opt/borrowed, CACHE at /var/cache/gradless, MODELS at /opt/models, and /tmp is the one place to write. COMMAND runs as
process 1, as user 10001, which may only read root's files, because Python may be among them.
"""

from __future__ import annotations

import fcntl
import os
import socket
import struct
import subprocess
import sys

_SET_INTERFACE_FLAGS = 0x8914
_UP_AND_RUNNING = 0x41


def mount(*arguments: str) -> None:
    subprocess.run(["mount", *arguments], check=True)


def bind(source: str, target: str) -> None:
    os.makedirs(target)  # noqa: PTH103 - of a tmpfs made a moment ago
    mount("--bind", source, target)
    mount("-o", "remount,bind,ro", target)


def main(venv: str, borrowed: str, cache: str, models: str, *command: str) -> None:
    mount("--make-rprivate", "/")
    for folder in ("/opt", "/var/cache"):
        mount("-t", "tmpfs", "tmpfs", folder)
    bind(venv, "/opt/gradless")
    bind(borrowed, "/opt/borrowed")
    bind(cache, "/var/cache/gradless")
    bind(models, "/opt/models")
    # Where SageMaker puts a model.
    os.makedirs("/opt/ml")  # noqa: PTH103 - of a tmpfs made a moment ago
    os.symlink("/opt/models/my-model", "/opt/ml/model")  # noqa: PTH211 - as above
    # After what lies there has been bound elsewhere.
    mount("-t", "tmpfs", "tmpfs", "/tmp")  # noqa: S108 - a private mount
    mount("-t", "proc", "proc", "/proc")
    mount("-o", "remount,bind,ro", "/")
    with socket.socket() as any_socket:
        fcntl.ioctl(any_socket, _SET_INTERFACE_FLAGS, struct.pack("16sh", b"lo", _UP_AND_RUNNING))
    os.chdir("/")
    os.execvp(command[0], command)  # noqa: S606 - the very point


if __name__ == "__main__":
    main(*sys.argv[1:])
