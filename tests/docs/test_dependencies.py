"""The version bounds of pyproject.toml and the locked versions of constraints.txt."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
DEPENDENCIES = {requirement.name: requirement for requirement in map(Requirement, PROJECT["project"]["dependencies"])}

# Packages that read clients' bytes or write responses: the last versions before the fix of a published fault.
FAULTY = {"pillow": "12.2.0", "python-multipart": "0.0.26", "starlette": "0.49.0", "jinja2": "3.1.5"}


@pytest.mark.parametrize(("name", "version"), FAULTY.items())
def test_no_version_with_a_known_fault_may_be_installed(name: str, version: str) -> None:
    assert not DEPENDENCIES[name].specifier.contains(version)


def test_locked_versions_are_within_the_bounds() -> None:
    locked = _locked()
    for name, requirement in DEPENDENCIES.items():
        assert requirement.specifier.contains(locked[_normal(name)]), name


def test_each_development_dependency_is_locked() -> None:
    assert {_normal(Requirement(line).name) for line in PROJECT["dependency-groups"]["dev"]} <= set(_locked())


EXTRAS = set(PROJECT["project"]["optional-dependencies"])
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_a_page_installs_existing_extras_from_the_checkout_or_from_the_wheel(page: Path) -> None:
    found = re.findall(r"pip install (?:-e )?'([^'\[]+)\[([\w,]+)\]'", page.read_text())
    wheel = f"dist/gradless-{PROJECT['project']['version']}-py3-none-any.whl"
    assert {source for source, _ in found} <= {".", wheel}
    assert {extra for _, extras in found for extra in extras.split(",")} <= EXTRAS
    # No index has the package.
    assert "pip install gradless" not in page.read_text()


def test_the_quickstart_lists_every_extra() -> None:
    section = (ROOT / "docs/quickstart.md").read_text().split("## Extras\n")[1]
    assert set(re.findall(r"^- `(\w+)`:", section, re.MULTILINE)) == EXTRAS


def test_each_package_of_the_wheel_ships_its_annotations() -> None:
    assert "Typing :: Typed" in PROJECT["project"]["classifiers"]
    packages = PROJECT["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"]
    assert packages == ["app", "gradless", "models"]
    assert all((ROOT / package / "py.typed").is_file() for package in packages)


def _locked() -> dict[str, str]:
    """Return the locked versions by name."""
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pairs = (line.split("==") for line in lines if not line.startswith("#"))
    return {_normal(name): version for name, version in pairs}


def _normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()
