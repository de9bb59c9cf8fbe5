"""What the Dockerfile makes, as far as it can be read off it."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
import tomllib
from collections.abc import Callable
from importlib.metadata import distributions
from itertools import pairwise
from pathlib import Path
from typing import Any

import pathspec
import pytest

from app.settings import Settings
from observe import ROOT

IMAGES = ["cpu", "cuda"]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def test_hadolint_finds_nothing() -> None:
    hadolint = Path(sys.executable).with_name("hadolint")
    command = [hadolint, "--no-color", "--failure-threshold", "style", ROOT / "Dockerfile"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "")
    assert "hadolint ignore" not in (ROOT / "Dockerfile").read_text()


def test_without_a_target_the_image_is_the_one_for_cpus(dockerfile: Any) -> None:
    assert list(dockerfile.stages)[-1] == "cpu"


@pytest.mark.parametrize("image", IMAGES)
def test_an_image_takes_the_argument_that_sagemaker_runs_it_with(dockerfile: Any, image: str) -> None:
    # `docker run IMAGE serve`: the argument replaces CMD, and follows ENTRYPOINT.
    assert json.loads(dockerfile.values(image, "ENTRYPOINT")[-1]) == ["gradless"]
    assert dockerfile.command(image) == ["gradless", "serve"]


@pytest.mark.parametrize("image", IMAGES)
def test_an_image_runs_as_a_numeric_user_other_than_root(dockerfile: Any, image: str) -> None:
    # Kubernetes cannot know whether a user name is root's.
    assert dockerfile.values(image, "USER")[-1] == "10001:10001"


@pytest.mark.parametrize("image", IMAGES)
def test_an_image_has_no_compiler_installer_or_source_of_its_own(dockerfile: Any, image: str) -> None:
    assert not any(word in run for run in dockerfile.values(image, "RUN") for word in ("apt-get", "pip", "gcc"))
    copied = dockerfile.values(image, "COPY")
    assert copied
    assert all(value.startswith(f"--from=build-{image} ") for value in copied)


@pytest.mark.parametrize("image", IMAGES)
def test_an_image_has_no_home_for_telemetry_to_write_to(dockerfile: Any, image: str) -> None:
    assert dockerfile.environment(image)["HOME"] == "/nonexistent"
    assert "--no-create-home --home-dir /nonexistent" in dockerfile.run_command(image, "useradd")


@pytest.mark.parametrize("image", IMAGES)
def test_an_image_is_labelled_with_the_version_and_the_licence_of_the_project(dockerfile: Any, image: str) -> None:
    [label] = dockerfile.values(image, "LABEL")
    names = ("title", "description", "licenses", "version", "revision")
    assert all(f"org.opencontainers.image.{name}=" in label for name in names)
    assert f'title="{PROJECT["name"]}"' in label
    assert f'licenses="{PROJECT["license"]}"' in label
    assert f"VERSION={PROJECT['version']}" in dockerfile.values(image, "ARG")


def test_the_gpu_image_exits_without_a_gpu(dockerfile: Any) -> None:
    assert dockerfile.environment("cuda")["GRADLESS_DEVICE"] == "cuda"


@pytest.mark.parametrize(("image", "own"), [("cpu", "openvino"), ("cuda", "gpu")])
def test_an_image_has_the_extras_of_its_device_of_grpc_and_of_traces(dockerfile: Any, image: str, own: str) -> None:
    found = re.search(r"'\.\[(.*)\]'", dockerfile.run_command(f"build-{image}", "'.["))
    assert found
    extras = found[1].split(",")
    assert extras == [own, "grpc", "otel"]
    assert set(extras) <= PROJECT["optional-dependencies"].keys()


@pytest.mark.parametrize("image", IMAGES)
def test_whatever_is_installed_is_locked(dockerfile: Any, image: str) -> None:
    environment = dockerfile.environment(f"build-{image}")
    assert environment["PIP_CONSTRAINT"] == environment["PIP_BUILD_CONSTRAINT"] == "/source/constraints.txt"
    lines = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if not line.startswith("#")]
    assert all("==" in line for line in lines)


def test_the_build_context_has_only_what_the_build_copies(dockerfile: Any) -> None:
    lines = (ROOT / ".dockerignore").read_text().splitlines()
    # As git's patterns, but that Docker's begin at the root.
    anchored = [re.sub(r"^(!?)(?=[^#*]|\*$)", r"\1/", line) for line in lines if not line.startswith("#")]
    ignored = pathspec.GitIgnoreSpec.from_lines(anchored)
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()
    sent = {path.split("/")[0] for path in tracked if not ignored.match_file(path)}
    copied = {
        word
        for instructions in dockerfile.stages.values()
        for name, value in instructions
        if name == "COPY" and not value.startswith("--from=")
        for word in value.split()[:-1]
    }
    assert sent == copied


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_whole_build_runs_in_a_clean_folder_and_installs_only_locked_packages(
    dockerfile: Any, build_step: Callable[..., None], tmp_path: Path
) -> None:
    # PyTorch's own index is not the registry that tests install from.
    for command in dockerfile.run_commands("build-cpu"):
        here = command.replace("/opt/gradless", f"{tmp_path}/opt").replace("/var/cache/gradless", f"{tmp_path}/cache")
        build_step(here, TORCH_INDEX="https://pypi.org/simple")
    assert list((tmp_path / "cache").glob("openvino-*.xml"))
    locked = {normal(line) for line in (ROOT / "constraints.txt").read_text().splitlines()}
    found = distributions(path=[str(path) for path in tmp_path.glob("opt/lib/python*/site-packages")])
    taken = {normal(f"{one.name}=={one.version}") for one in found}
    assert taken - locked == {f"gradless=={PROJECT['version']}"}


def normal(requirement: str) -> str:
    name, _, version = requirement.partition("==")
    return f"{re.sub(r'[-_.]+', '-', name).lower()}=={version}"


def test_the_container_of_the_readme_has_time_to_drain_and_receives_early_signals() -> None:
    [command] = [line for line in (ROOT / "README.md").read_text().splitlines() if line.startswith("docker run ")]
    found = re.search(r"--stop-timeout (\d+) ", command)
    assert found
    assert int(found[1]) > Settings().drain_timeout_s
    assert " --init " in command


def test_your_own_model_runs_in_the_container_of_the_readme_with_its_volumes(dockerfile: Any) -> None:
    [plain] = [line for line in (ROOT / "README.md").read_text().splitlines() if line.startswith("docker run ")]
    page = (ROOT / "docs/deployment.md").read_text()
    [check, own] = [shlex.split(line) for line in page.splitlines() if line.startswith("docker run ")]
    assert set(shlex.split(plain)) <= set(own)
    volumes = dict(word.split(":")[:2] for flag, word in pairwise(own) if flag == "--volume")
    assert volumes == {
        "$PWD/deployed": "/models",
        "gradless-cache": dockerfile.environment("cpu")["GRADLESS_CACHE_FOLDER"],
    }
    variables = dict(word.split("=") for flag, word in pairwise(own) if flag == "--env")
    assert variables == {"GRADLESS_MODELS": "/models/my-model", "GRADLESS_MODELS_FOLDER": "/models"}
    assert check[-4:] == ["gradless:cpu", "models", "check", variables["GRADLESS_MODELS"]]


def test_make_run_installs_pytorch_from_another_index_as_the_image_does(dockerfile: Any) -> None:
    index = "https://download.pytorch.org/whl/cpu"
    assert f"TORCH_INDEX={index}" in dockerfile.values("build-cpu", "ARG")
    assert f"make run TORCH_INDEX={index} " in (ROOT / "README.md").read_text()
    plain, other = (
        subprocess.run(
            ["make", "--dry-run", "run", "VENV=/nowhere", *setting],
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=True,
        ).stdout.splitlines()
        for setting in ((), (f"TORCH_INDEX={index}",))
    )
    [install] = set(other) - set(plain)
    assert install.endswith(f"--index-url '{index}' --no-deps torch torchvision")
    assert "--editable" in other[other.index(install) + 1]


def test_the_wheel_has_the_three_packages_with_the_page_and_no_tests(installed: Path) -> None:
    [packages] = installed.glob("lib/python*/site-packages")
    names = {path.name for path in packages.iterdir()}
    assert names == {"app", "gradless", "models", f"gradless-{PROJECT['version']}.dist-info", "borrowed.pth"}
    assert (packages / "app/page/index.html").is_file()
    # Nothing can be compiled on a read-only root.
    assert list(packages.glob("app/__pycache__/*.pyc"))
