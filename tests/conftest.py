"""What every layer of tests shares. Nothing here imports torch: unit tests run without it."""

from __future__ import annotations

import io
from collections.abc import Callable

import pytest
from PIL import Image

from models.samples import draw, encode

# Those that wait for processes first: what is left at the end is short, and no worker waits for another.
_LAYERS = ("scale", "server", "observability", "containers", "browser", "contract", "integration", "docs", "unit")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files in the order of their layers."""
    items.sort(key=lambda item: _LAYERS.index(item.path.parent.name))


@pytest.fixture(scope="session")
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(scope="session")
def clock_png() -> bytes:
    return encode(draw("clock"), "PNG")


@pytest.fixture(scope="session")
def clock_jpeg() -> bytes:
    return encode(draw("clock"), "JPEG")


@pytest.fixture
def image_file() -> Callable[..., bytes]:
    """Make the bytes of an image file: of a Pillow image, or of one colour."""

    def make(picture: Image.Image | None = None, image_format: str = "PNG", **options: object) -> bytes:
        file = io.BytesIO()
        (picture or Image.new("RGB", (40, 30), (200, 30, 60))).save(file, image_format, **options)
        return file.getvalue()

    return make
