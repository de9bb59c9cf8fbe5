"""One real server for all contract tests."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from observe.processes import gradless


@pytest.fixture(scope="session")
def address(tmp_path_factory: pytest.TempPathFactory, warm_command: Any) -> Iterator[str]:
    """URL of a server with the default model and default settings."""
    with gradless(tmp_path_factory.mktemp("server"), {}, start=warm_command.start) as served:
        yield served
