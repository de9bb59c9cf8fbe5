"""The Dockerfile's instructions, and its container as far as possible without a container engine."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import shlex
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from time import monotonic, sleep
from typing import Self

import pytest
from dockerfile_parse import DockerfileParser

ROOT = Path(__file__).parents[2]
START_TIMEOUT_S = 180
STOP_TIMEOUT_S = 90

_NAMESPACES = ["unshare", "--mount", "--pid", "--net", "--fork"]
_USER = "10001"
_READING = "-all,+dac_read_search"
_AS_USER = [
    *("setpriv", f"--reuid={_USER}", f"--regid={_USER}", "--clear-groups", "--no-new-privs"),
    *(f"--inh-caps={_READING}", f"--ambient-caps={_READING}", f"--bounding-set={_READING}"),
]


class Dockerfile:
    """Its instructions by stage."""

    def __init__(self, path: Path) -> None:
        self.stages: dict[str, list[tuple[str, str]]] = {}
        self.parents: dict[str, str] = {}
        for instruction in DockerfileParser(str(path)).structure:
            name, value = instruction["instruction"], instruction["value"]
            if name == "FROM":
                parent, _, stage = value.split()
                self.stages[stage], self.parents[stage] = [], parent
            elif name != "COMMENT" and self.stages:
                self.stages[stage].append((name, value))

    def of(self, stage: str) -> list[tuple[str, str]]:
        """What a stage is made by, from its base image on."""
        inherited = self.of(self.parents[stage]) if self.parents[stage] in self.stages else []
        return inherited + self.stages[stage]

    def values(self, stage: str, instruction: str) -> list[str]:
        return [value for name, value in self.of(stage) if name == instruction]

    def command(self, stage: str) -> list[str]:
        """What a container runs. Raises ValueError for the shell form, in which a shell would get the signals."""
        return [*json.loads(self.values(stage, "ENTRYPOINT")[-1]), *json.loads(self.values(stage, "CMD")[-1])]

    def health_check(self, stage: str) -> list[str]:
        _, command = self.values(stage, "HEALTHCHECK")[-1].split("CMD ", 1)
        checked: list[str] = json.loads(command)
        return checked

    def environment(self, stage: str) -> dict[str, str]:
        return dict(word.split("=", 1) for value in self.values(stage, "ENV") for word in shlex.split(value))

    def run_commands(self, stage: str) -> list[str]:
        """What a stage runs, as a shell takes it."""
        return [re.sub(r"^(--mount=\S+\s+)+", "", value) for value in self.values(stage, "RUN")]

    def run_command(self, stage: str, words: str) -> str:
        """The one of them with these words in it."""
        [found] = [command for command in self.run_commands(stage) if words in command]
        return found


@pytest.fixture(scope="session")
def dockerfile() -> Dockerfile:
    return Dockerfile(ROOT / "Dockerfile")


@pytest.fixture(scope="session")
def build_step(dockerfile: Dockerfile, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., None]:
    """Run a command of the stage build-cpu in the folder of its COPYs, with the same locked versions."""
    source = tmp_path_factory.mktemp("source")
    for name in (word for value in dockerfile.values("build-cpu", "COPY") for word in value.split()[:-1]):
        (source / name).symlink_to(ROOT / name)
    constraints = str(source / "constraints.txt")
    environment = os.environ | {
        "PIP_CONSTRAINT": constraints,
        "PIP_BUILD_CONSTRAINT": constraints,
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
    }

    def run(command: str, **variables: str) -> None:
        subprocess.run(["sh", "-ec", command], cwd=source, env=environment | variables, check=True)

    return run


@pytest.fixture(scope="session")
def installed(
    dockerfile: Dockerfile, build_step: Callable[..., None], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """/opt/gradless by the Dockerfile's own commands; what the project stands on is borrowed, at /opt/borrowed."""
    target = tmp_path_factory.mktemp("opt") / "gradless"
    commands = [
        dockerfile.run_command("build-cpu", "-m venv"),
        # Not what it needs, which takes minutes.
        dockerfile.run_command("build-cpu", "'.[").replace(" install ", " install --quiet --no-deps "),
    ]
    for command in commands:
        build_step(command.replace("/opt/gradless", str(target)))
    # Its command's first line names the interpreter by where it was installed.
    script = target / "bin/gradless"
    script.write_text(script.read_text().replace(str(target), "/opt/gradless"))
    [packages] = target.glob("lib/python*/site-packages")
    (packages / "borrowed.pth").write_text("/opt/borrowed\n")
    return target


class Container:
    """The image's command in namespaces of its own. Leaving the context kills it, if it has not ended by then."""

    def __init__(
        self, installed: Path, cache: Path, models: Path, command: list[str], environment: dict[str, str], log: Path
    ) -> None:
        torch = importlib.util.find_spec("torch")
        assert torch is not None
        assert torch.origin is not None
        self._environment = {**environment, "PATH": environment["PATH"].replace("$PATH", os.environ["PATH"])}
        self._log = log
        inside = [sys.executable, str(Path(__file__).with_name("contained.py")), str(installed)]
        with log.open("wb") as output:
            self._unshare = subprocess.Popen(
                [
                    *_NAMESPACES,
                    *inside,
                    str(Path(torch.origin).parents[1]),
                    str(cache),
                    str(models),
                    *_AS_USER,
                    *command,
                ],
                env=self._environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
            )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        # Not unshare: the kernel forgets to end the child with its parent once that has changed its user.
        if self._unshare.poll() is None:
            os.kill(self.process, signal.SIGKILL)
        self._unshare.wait(STOP_TIMEOUT_S)

    @property
    def log(self) -> str:
        return self._log.read_text()

    @property
    def process(self) -> int:
        """Return the outer process id of process 1."""
        [child] = Path(f"/proc/{self._unshare.pid}/task/{self._unshare.pid}/children").read_text().split()
        return int(child)

    def run(self, *command: str, stdin: bytes = b"") -> subprocess.CompletedProcess[bytes]:
        """As `docker exec` would."""
        return subprocess.run(
            self._entering(*command), input=stdin, env=self._environment, capture_output=True, check=False
        )

    def start(self, *command: str) -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            self._entering(*command), env=self._environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )

    def wait_until_ready(self, health_check: list[str]) -> Self:
        deadline = monotonic() + START_TIMEOUT_S
        while self._unshare.poll() is None and monotonic() < deadline:
            if '"event": "serving"' in self.log and self.run(*health_check).returncode == 0:
                return self
            sleep(0.2)
        pytest.fail(f"it does not become ready; its log:\n{self.log}")

    def wait_until_it_says(self, words: str) -> None:
        deadline = monotonic() + STOP_TIMEOUT_S
        while words not in self.log:
            if monotonic() > deadline:
                pytest.fail(f"it never logged {words!r}; its log:\n{self.log}")
            sleep(0.05)

    def exit_status(self) -> int:
        """Of the command, which unshare passes on."""
        return self._unshare.wait(STOP_TIMEOUT_S)

    def _entering(self, *command: str) -> list[str]:
        return ["nsenter", f"--target={self.process}", "--mount", "--pid", "--net", "--wd=/", *_AS_USER, *command]


@pytest.fixture(scope="session")
def converted(dockerfile: Dockerfile, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """/var/cache/gradless as the image has it: by the Dockerfile's own command, as root, as a build is."""
    cache = tmp_path_factory.mktemp("cache")
    command = dockerfile.run_command("build-cpu", "gradless compare")
    program = str(Path(sys.executable).parent / "gradless")
    in_place = command.replace("/var/cache/gradless", str(cache)).replace("/opt/gradless/bin/gradless", program)
    subprocess.run(["sh", "-ec", in_place], check=True, capture_output=True)
    return cache


_NETWORK = """
from torch import nn

def build(num_classes: int) -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 8, 3, stride=4), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, num_classes))
"""

_DESCRIPTION = """
architecture = "net:build"
weights = "random"
labels = ["cat", "dog", "fox"]

[transform]
resize = 40
crop = 32
interpolation = "bilinear"
mean = [0.5, 0.5, 0.5]
std = [0.5, 0.5, 0.5]
"""


@pytest.fixture(scope="session")
def deployed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the model folder `my-model`, as docs/deployment.md mounts one."""
    folder = tmp_path_factory.mktemp("deployed")
    (folder / "my-model").mkdir()
    (folder / "my-model/net.py").write_text(_NETWORK)
    (folder / "my-model/model.toml").write_text(_DESCRIPTION)
    return folder


@pytest.fixture(scope="module")
def container(
    dockerfile: Dockerfile, installed: Path, converted: Path, deployed: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Container]:
    """The image `cpu` with its environment and a folder of models, ready and shared. Skips where namespaces are not
    available."""
    tried = subprocess.run([*_NAMESPACES, "true"], capture_output=True, text=True, check=False)
    if tried.returncode:
        pytest.skip(f"no namespaces to contain it in: {tried.stderr.strip()}")
    log = tmp_path_factory.mktemp("log") / "container.log"
    environment = dockerfile.environment("cpu") | {"GRADLESS_MODELS_FOLDER": "/opt/models"}
    with Container(installed, converted, deployed, dockerfile.command("cpu"), environment, log) as started:
        yield started.wait_until_ready(dockerfile.health_check("cpu"))
