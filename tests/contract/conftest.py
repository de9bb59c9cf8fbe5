"""One real server for everybody else's clients."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from observe.processes import gradless


@pytest.fixture(scope="session")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Where the default model is served with default settings."""
    with gradless(tmp_path_factory.mktemp("server"), {}) as served:
        yield served
