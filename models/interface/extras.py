"""Optional dependencies: whether they are installed, and the command that installs them."""

from __future__ import annotations

import importlib.util
import json
import shlex
import sys
from dataclasses import dataclass
from importlib.metadata import distribution
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import url2pathname


def installed(*modules: str) -> bool:
    """Return whether all `modules` can be imported, without importing them."""
    try:
        return all(importlib.util.find_spec(module) is not None for module in modules)
    except ModuleNotFoundError:
        # A parent package is missing.
        return False


@dataclass(frozen=True, slots=True)
class Package:
    """An optional dependency: its import name, the name that users know, and the extra of gradless that installs it."""

    name: str
    title: str
    extra: str

    @property
    def installed(self) -> bool:
        return installed(self.name)


def install_command(extra: str) -> str:
    """Return the command that adds an extra of gradless to this environment.

    It installs from the checkout or the wheel that gradless was installed from, as pip has recorded it (PEP 610),
    because no package index has gradless.
    """
    return f"{sys.executable} -m pip install {_requirement(extra)}"


def _requirement(extra: str) -> str:
    recorded = distribution("gradless").read_text("direct_url.json")
    if recorded is None:
        return shlex.quote(f"gradless[{extra}]")
    origin = json.loads(recorded)
    source = Path(url2pathname(urlsplit(origin["url"]).path))
    requirement = shlex.quote(f"{source}[{extra}]")
    if not origin.get("dir_info", {}).get("editable"):
        return requirement
    return f"-e {requirement} -c {shlex.quote(str(source / 'constraints.txt'))}"
