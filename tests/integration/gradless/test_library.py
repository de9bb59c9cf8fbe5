"""`import gradless` in a project that has packages called `app` and `models` of its own."""

from __future__ import annotations

import subprocess
import sys
import tomllib
from pathlib import Path

import psutil
import pytest
import torch

import gradless
from gradless import memory
from gradless.__main__ import main
from models import gradmodes
from models.serving.lens import compare_served

ROOT = Path(__file__).parents[3]


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A folder with packages called `app` and `models`."""
    for package in ("app", "models"):
        (tmp_path / package).mkdir()
        (tmp_path / package / "__init__.py").write_text("OWN = True\n")
    return tmp_path


def run(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *arguments], cwd=folder, capture_output=True, text=True, timeout=100, check=False
    )


def test_the_library_works_alongside_packages_called_app_and_models(project: Path) -> None:
    script = """
import torch, app, models, gradless
assert app.OWN and models.OWN
network = torch.nn.Sequential(torch.nn.Linear(8, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2)).eval()
rows = torch.rand(4, 8)
assert gradless.retained_bytes(lambda: network(rows)) == 4 * 8 * 4
comparison = gradless.compare(network, rows, iterations=1)
assert callable(gradless.compare)
assert comparison.largest_batch is not None
print({arm.arm: arm.retained_bytes for arm in comparison.arms}, gradless.__version__)
"""
    done = run(project, "-c", script)
    arms = {"grad": 128, "no_grad": 0, "set_grad_enabled_false": 0, "inference_mode": 0, "frozen": 0, "train": 0}
    assert (done.stdout, done.stderr, done.returncode) == (f"{arms} {gradless.__version__}\n", "", 0)


def test_the_command_names_the_package_that_shadows_its_own(project: Path) -> None:
    done = run(project, "-m", "gradless", "--help")
    hidden = project / "app" / "__init__.py"
    assert done.stderr == (
        f"gradless: {hidden} hides the package 'app' of gradless; start in another folder, or take it off PYTHONPATH\n"
    )
    assert (done.stdout, done.returncode) == ("", 1)


def test_the_command_runs_where_no_package_hides_its_own(tmp_path: Path) -> None:
    done = run(tmp_path, "-m", "gradless", "sample", "clock.png")
    assert (done.stderr, done.returncode) == ("", 0)
    assert (tmp_path / "clock.png").exists()


def test_the_console_script_runs_the_check() -> None:
    scripts = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]
    assert scripts == {"gradless": f"{main.__module__}:{main.__name__}"}


def test_the_library_exports_two_functions_and_its_version() -> None:
    assert gradless.__all__ == ["__version__", "compare", "retained_bytes"]
    assert gradless.__version__ == tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    with pytest.raises(AttributeError, match="no attribute 'compare_served'"):
        gradless.compare_served  # noqa: B018


def test_no_submodule_replaces_an_exported_function() -> None:
    modules = {path.stem for path in (ROOT / "gradless").iterdir()}
    assert modules.isdisjoint(gradless.__all__)


def test_the_former_package_exports_the_same_functions() -> None:
    assert gradmodes.compare is gradless.compare
    assert gradmodes.retained_bytes is gradless.retained_bytes
    assert gradmodes.compare_served is compare_served


def test_free_memory_of_the_cpu_is_the_available_memory_of_the_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "memory_limits", tuple)
    available = psutil.virtual_memory().available
    assert memory.free_bytes(torch.device("cpu")) == pytest.approx(available, rel=0.2)


def test_free_memory_of_the_cpu_is_at_most_the_room_of_the_container(monkeypatch: pytest.MonkeyPatch) -> None:
    limits = [memory.MemoryLimit(limit=10_000, room=4321), memory.MemoryLimit(limit=2**50, room=2**49)]
    monkeypatch.setattr(memory, "memory_limits", lambda: limits)
    assert memory.free_bytes(torch.device("cpu")) == 4321


def test_free_memory_is_unknown_where_the_kernel_does_not_say(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(memory, "_MEMORY_FILE", tmp_path / "none")
    assert memory.free_bytes(torch.device("cpu")) is None
    network = torch.nn.Linear(4, 2).eval()
    assert gradless.compare(network, torch.rand(2, 4), iterations=1).largest_batch is None
