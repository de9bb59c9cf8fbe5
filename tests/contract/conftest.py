"""One real server for all contract tests."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from observe.processes import gradless


@pytest.fixture(scope="session")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """URL of a server with the default model and default settings."""
    with gradless(tmp_path_factory.mktemp("server"), {}) as served:
        yield served
