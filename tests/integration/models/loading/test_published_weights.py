"""Published weights: out of the cache folder where they are, and a clear word where they cannot be had."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from urllib.error import URLError

import pytest
import torch
import torchvision

from models.interface.errors import StartError, WeightsUnavailableError
from models.loading import catalog

NAME = "mobilenet_v3_small"
URL = torchvision.models.get_model_weights(NAME).DEFAULT.url


@pytest.fixture
def checkpoints(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The folder of downloaded weights, empty, on a machine without a network."""

    def unreachable(*_args: object, **_options: object) -> None:
        raise URLError("no route to host")

    folder = tmp_path / "hub" / "checkpoints"
    folder.mkdir(parents=True)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr(torch.hub, "download_url_to_file", unreachable)
    # A folder set earlier in the process would win over the environment.
    monkeypatch.setattr(torch.hub, "_hub_dir", None)
    return folder


def test_without_internet_access_the_error_names_the_file_and_its_path(checkpoints: Path) -> None:
    with pytest.raises(WeightsUnavailableError) as refused:
        catalog.find(NAME).build()
    message = str(refused.value)
    assert "no route to host" in message
    assert f"put {URL} at {checkpoints / Path(URL).name}" in message
    assert f"serve {NAME}:random" in message
    assert "\n" not in message


def test_weights_at_that_path_are_served(checkpoints: Path) -> None:
    published = {
        name: torch.full_like(tensor, 3)
        for name, tensor in catalog.find(f"{NAME}:random").build().module.state_dict().items()
    }
    torch.save(published, checkpoints / Path(URL).name)
    loaded = catalog.find(NAME).build().module.state_dict()
    assert loaded.keys() == published.keys()
    assert all(loaded[name].equal(tensor) for name, tensor in published.items())


@pytest.mark.parametrize(
    "content",
    [b"", b"<html>This site is blocked.</html>", b"PK\x03\x04" + b"\0" * 100],
    ids=["empty", "a proxy's page", "cut short"],
)
def test_a_cached_file_without_weights_is_a_start_error(checkpoints: Path, content: bytes) -> None:
    (checkpoints / Path(URL).name).write_bytes(content)
    with pytest.raises(StartError, match=Path(URL).name):
        catalog.find(NAME).build()


def test_weights_of_another_network_are_a_start_error(checkpoints: Path) -> None:
    torch.save({"weight": torch.zeros(2)}, checkpoints / Path(URL).name)
    with pytest.raises(StartError):
        catalog.find(NAME).build()
