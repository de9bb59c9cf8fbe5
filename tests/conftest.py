"""What every layer of tests shares. Nothing here imports torch: unit tests run without it."""

from __future__ import annotations

import contextlib
import functools
import io
import json
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any, Self

import httpcore2
import httpx2
import pytest
from hypothesis import HealthCheck, settings
from PIL import Image

from models.images.samples import draw, encode

# Those that wait for processes first: what is left at the end is short, and no worker waits for another. A Ray is a
# dozen processes, which start at once: of the two files that start one, the other is far off.
_TURNS = (
    "ray/test_replicas.py",
    "browser",
    "server",
    "observability",
    "containers",
    "ray",
    "contract",
    "clients",
    "integration",
    # Its clients by the hundred share the cores with what it measures: not beside browsers and Ray.
    "server/test_all_protocols.py",
    "docs",
    "unit/test_without_torch.py",
    "unit/models/images/test_decoder_process.py",
    "unit",
)

# Files that share a server or an installation: one worker runs them one after another.
_TOGETHER = (
    "tests/browser/",
    "tests/contract/",
    r"tests/containers/test_(image|running)\.py",
    r"tests/server/test_(folder_commands|heads|limits|load|protocol|vanishing_clients|welcome)\.py",
)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """With `--dist loadfile`, keep groups of files together too."""
    if config.getvalue("dist") != "loadfile":
        return None
    from xdist.scheduler import LoadFileScheduling  # noqa: PLC0415 - needed in its main process alone

    class Scheduling(LoadFileScheduling):
        def _split_scope(self, nodeid: str) -> str:
            found = (pattern for pattern in _TOGETHER if re.match(pattern, nodeid))
            return next(found, super()._split_scope(nodeid))

    return Scheduling(config, log)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Sort files by layer, or by a position of their own."""

    def position(item: pytest.Item) -> int:
        path = item.path.relative_to(Path(__file__).parent).as_posix()
        # The longest that fits.
        return _TURNS.index(max((start for start in _TURNS if path.startswith(start)), key=len))

    items.sort(key=position)


# A shell without job control has what it runs in the background ignore Ctrl-C, and nohup has it ignore the end of the
# terminal. Both are inherited; what the tests start is to heed them.
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGHUP, signal.SIG_DFL)


# Each client, and each httpx2.get, would read all certificates again: 30 ms of a core. Nothing here speaks TLS.
httpcore2.default_ssl_context = functools.cache(httpcore2.default_ssl_context)

# The default timeout of requests, which is 5 s. On a busy machine a server may be slower.
for _phase in ("connect", "read", "write", "pool"):
    setattr(httpx2._config.DEFAULT_TIMEOUT_CONFIG, _phase, 60.0)  # noqa: SLF001 - the default argument of each method

# Each run draws the same examples, and none fails because the machine is busy.
settings.register_profile(
    "tests", deadline=None, derandomize=True, database=None, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("tests")


class Forked:
    """A command in a fork of warm_command.py, with the interface of subprocess.Popen."""

    def __init__(self, arguments: Sequence[Any], status: socket.socket) -> None:
        self._arguments = arguments
        self._status = status
        self.pid = int(status.recv(16))
        self.returncode: int | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.wait()
        self._status.close()

    def poll(self) -> int | None:
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.wait(0)
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        if self.returncode is None:
            self._status.settimeout(timeout)
            try:
                self.returncode = int(self._status.recv(16))
            except (TimeoutError, BlockingIOError):
                raise subprocess.TimeoutExpired(self._arguments, timeout or 0) from None
        return self.returncode

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


class WarmCommand:
    """Starts the installed command without the time of its imports: see warm_command.py. All processes of a run share
    that process, which ends with the last of them."""

    def __init__(self) -> None:
        # Without pytest-xdist a run has one process. The name is in the kernel, not in the file system.
        name = f"\0gradless-tests-{os.environ.get('PYTEST_XDIST_TESTRUNUID', os.getpid())}"
        self._process: subprocess.Popen[bytes] | None = None
        self._control = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        # While nobody listens, this process starts it, unless another one is about to.
        while self._control.connect_ex(name):
            with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
                try:
                    listener.bind(name)
                except OSError:
                    time.sleep(0.01)
                    continue
                listener.listen()
                self._process = _warm_process(listener)

    def start(
        self,
        command: Sequence[Any],
        environ: Mapping[str, str],
        stdout: IO[Any],
        stderr: IO[Any] | None = None,
        *,
        new_session: bool = False,
        ignored: Sequence[int] = (),
    ) -> Forked:
        """`command` is what a shell would be given; without `stderr` both outputs go to `stdout`.

        `new_session` is what `setsid` does, `ignored` are signals, as `nohup` ignores SIGHUP.
        """
        arguments = [str(argument) for argument in command]
        request = {
            "argv": arguments,
            "environ": dict(environ),
            "folder": str(Path.cwd()),
            "new_session": new_session,
            "ignored": list(ignored),
        }
        status, minds = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with minds:
            descriptors = [stdout.fileno(), (stderr or stdout).fileno(), minds.fileno()]
            socket.send_fds(self._control, [json.dumps(request).encode()], descriptors)
        return Forked(arguments, status)

    def run(
        self, command: Sequence[Any], environ: Mapping[str, str], timeout_s: float = 240
    ) -> subprocess.CompletedProcess[bytes]:
        """Run a command to its end, with its output."""
        with tempfile.TemporaryFile() as stdout, tempfile.TemporaryFile() as stderr:
            with self.start(command, environ, stdout, stderr) as process:
                try:
                    status = process.wait(timeout_s)
                except BaseException:
                    process.kill()
                    raise
            stdout.seek(0)
            stderr.seek(0)
            return subprocess.CompletedProcess(command, status, stdout.read(), stderr.read())

    def close(self) -> None:
        self._control.close()
        if self._process:
            self._process.wait()


def _warm_process(listener: socket.socket) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, Path(__file__).with_name("warm_command.py"), str(listener.fileno())],
        pass_fds=[listener.fileno()],
        # On a busy machine threads of OpenMP wait for one another longer than they work. Both are read once, when
        # PyTorch is imported.
        env=os.environ | {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"},
    )


@pytest.fixture(scope="session")
def warm_command() -> Iterator[WarmCommand]:
    with contextlib.closing(WarmCommand()) as command:
        yield command


_NETWORK = """
from torch import nn

def build(num_classes=10):
    layers = [nn.Conv2d(3, 16, 3, stride=2), nn.BatchNorm2d(16), nn.ReLU()]
    for _ in range(4):
        layers += [nn.Conv2d(16, 16, 3), nn.BatchNorm2d(16), nn.ReLU()]
    head = [nn.Linear(256, {hidden}), nn.ReLU(), nn.Linear({hidden}, num_classes)]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(4), nn.Flatten(), *head)
"""
_DESCRIPTION = """
architecture = "net:build"
weights = "random"
[transform]
resize = 36
crop = 32
interpolation = "bilinear"
mean = [0.5, 0.5, 0.5]
std = [0.5, 0.5, 0.5]
"""


@pytest.fixture(scope="session")
def make_model() -> Callable[..., Path]:
    """Make a model folder, whose last part is its name, with a network of few layers: it loads in a moment."""

    def make(folder: Path, hidden: int = 64) -> Path:
        folder.mkdir()
        (folder / "net.py").write_text(_NETWORK.format(hidden=hidden))
        (folder / "model.toml").write_text(_DESCRIPTION)
        return folder

    return make


@pytest.fixture(scope="session")
def small_model(make_model: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The model `small`, shared."""
    return make_model(tmp_path_factory.mktemp("models") / "small")


@pytest.fixture(scope="session")
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(scope="session")
def clock_png() -> bytes:
    return encode(draw("clock"), "PNG")


@pytest.fixture(scope="session")
def clock_jpeg() -> bytes:
    return encode(draw("clock"), "JPEG")


@pytest.fixture
def image_file() -> Callable[..., bytes]:
    """Make the bytes of an image file: of a Pillow image, or of one colour."""

    def make(picture: Image.Image | None = None, image_format: str = "PNG", **options: object) -> bytes:
        file = io.BytesIO()
        (picture or Image.new("RGB", (40, 30), (200, 30, 60))).save(file, image_format, **options)
        return file.getvalue()

    return make
