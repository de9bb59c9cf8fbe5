"""The machine and versions of a run, stored with its figures."""

from __future__ import annotations

import datetime as dt
import json
import os
import platform
import shlex
import subprocess
import sys
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import psutil

_PACKAGES = (
    "torch",
    "torchvision",
    "timm",
    "openvino",
    "nncf",
    "pillow",
    "simplejpeg",
    "fastapi",
    "uvicorn",
    "litserve",
    "mosec",
    "bentoml",
    "ray",
    "httptools",
)


def describe(arguments: Sequence[str], settings: dict[str, Any]) -> dict[str, Any]:
    """Return processor, memory, system, versions, date, command and settings, without the machine's name."""
    return {
        "date": dt.datetime.now(dt.UTC).date().isoformat(),
        "command": shlex.join(["python", "-m", "benchmarks", *arguments]),
        "processor": processor(),
        "cores": os.cpu_count(),
        "memory_gib": round(psutil.virtual_memory().total / 2**30),
        "system": f"{platform.system()} {platform.release().partition('-')[0]}",
        "python": sys.version.split()[0],
        "versions": {package: _version(package) for package in _PACKAGES},
        "wrk": _wrk(),
        "load_average_before": psutil.getloadavg()[0],
        "settings": settings,
    }


def lines(described: Mapping[str, Any], packages: Sequence[str], command: str) -> list[str]:
    """Return what `describe` found as the last lines of a page, with the versions of `packages`."""
    versions = [f"Python {described['python']}", *(f"{name} {described['versions'][name]}" for name in packages)]
    return [
        f"{described['processor']}, {described['cores']} cores, {described['memory_gib']} GiB; {described['system']}.",
        f"{', '.join(versions)}.",
        f"{described['date']}, load average before {described['load_average_before']:.1f}:",
        f"`{command}`",
    ]


def save(path: Path, description: dict[str, Any]) -> None:
    """Write as JSON, for `load`."""
    path.write_text(json.dumps(description, indent=2) + "\n", encoding="utf-8")


def load(path: Path) -> dict[str, Any]:
    """Return what `save` wrote."""
    description: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return description


def processor() -> str:
    """Return the processor's name and its relevant instruction sets."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    fields = dict(line.split(":", 1) for line in lines if ":" in line)
    named = {name.strip(): value.strip() for name, value in fields.items()}
    notable = [flag for flag in ("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "amx_bf16") if flag in _flags(named)]
    return f"{named.get('model name', platform.machine())} ({', '.join(notable)})"


def _flags(fields: dict[str, str]) -> list[str]:
    return fields.get("flags", "").split()


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


def _wrk() -> str:
    output = subprocess.run(["wrk", "--version"], check=False, capture_output=True, text=True)  # noqa: S607 - on the PATH
    return (output.stdout + output.stderr).split("[")[0].removeprefix("wrk").strip()
