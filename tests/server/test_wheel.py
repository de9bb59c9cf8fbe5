"""What `make dist` builds: the wheel serves in an environment that has nothing else of the checkout."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
import tarfile
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import httpx2
import pytest

ROOT = Path(__file__).parents[2]

WHERE = """
import importlib.util, app, gradless, models
print(app.__file__, gradless.__file__, models.__file__, importlib.util.find_spec("observe"), gradless.__version__)
"""


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the wheel and the sdist."""
    folder = tmp_path_factory.mktemp("dist")
    make = ["make", "--no-print-directory", "dist", f"VENV={sys.prefix}", f"DIST={folder}"]
    done = subprocess.run(make, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


@pytest.fixture(scope="module")
def environment(built: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A new environment with the wheel. What it depends on is borrowed from this one, without its gradless."""
    folder = tmp_path_factory.mktemp("environment")
    [wheel] = built.glob("*.whl")
    python = folder / "bin/python"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder], check=True)
    pip = [sys.executable, "-m", "pip", "--python", python]
    subprocess.run([*pip, "install", "--quiet", "--no-deps", "--no-compile", wheel], check=True)
    torch = importlib.util.find_spec("torch")
    assert torch is not None
    assert torch.origin is not None
    [packages] = folder.glob("lib/python*/site-packages")
    # Path files in there are not read: the checkout stays out.
    (packages / "borrowed.pth").write_text(f"{Path(torch.origin).parents[1]}\n")
    return folder


def test_make_dist_builds_a_wheel_and_an_sdist_of_the_version(built: Path) -> None:
    name = f"gradless-{version('gradless')}"
    assert {path.name for path in built.iterdir()} == {f"{name}-py3-none-any.whl", f"{name}.tar.gz"}
    with tarfile.open(built / f"{name}.tar.gz") as sdist:
        held = {member.split("/")[1] for member in sdist.getnames()}
    assert {"app", "gradless", "models", "docs", "tests", "pyproject.toml", "constraints.txt", "Makefile"} <= held


def test_the_wheel_is_imported_from_its_own_environment(environment: Path, tmp_path: Path) -> None:
    command = [environment / "bin/python", "-c", WHERE]
    *files, checkout, imported = subprocess.run(
        command, cwd=tmp_path, capture_output=True, text=True, check=True
    ).stdout.split()
    assert all(Path(file).is_relative_to(environment) for file in files)
    assert (checkout, imported) == ("None", version("gradless"))


def test_the_wheel_serves_the_page_and_answers(
    environment: Path,
    start_command: Callable[..., Any],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    clock_jpeg: bytes,
) -> None:
    monkeypatch.chdir(tmp_path)
    server = start_command([environment / "bin/gradless", "serve", "null", "--port", "0"])
    with httpx2.Client(base_url=server.address, timeout=30) as http:
        assert "<title>gradless</title>" in http.get("/").text
        assert http.get("/docs").status_code == 200
        (result,) = http.post("/v1/classify?top_k=1", content=clock_jpeg).json()["results"]
    assert len(result["predictions"]) == 1
