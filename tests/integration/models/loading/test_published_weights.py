"""Published weights: from a file in the cache folder, else a download. A missing or wrong file is a start error."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple
from urllib.error import URLError

import huggingface_hub
import pytest
import torch
import torchvision
from safetensors.torch import save_file

from models.interface.errors import StartError, WeightsUnavailableError
from models.loading import catalog


class _Published(NamedTuple):
    name: str
    file: str
    address: str
    save: Callable[[Mapping[str, torch.Tensor], Path], None]


_URL = torchvision.models.get_model_weights("mobilenet_v3_small").DEFAULT.url
TORCHVISION = _Published("mobilenet_v3_small", Path(_URL).name, _URL, torch.save)
# One of timm's own for tests: under half a million parameters.
TIMM = _Published(
    "timm/test_resnet.r160_in1k",
    "timm--test_resnet.r160_in1k.safetensors",
    "https://huggingface.co/timm/test_resnet.r160_in1k/resolve/main/model.safetensors",
    lambda state, file: save_file(dict(state), file),
)
_BOTH = pytest.mark.parametrize("published", [TORCHVISION, TIMM], ids=["torchvision", "timm"])


@pytest.fixture
def checkpoints(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of downloaded weights, empty, on a machine without a network."""

    def unreachable(*_args: object, **_options: object) -> None:
        raise URLError("no route to host")

    folder = tmp_path / "hub" / "checkpoints"
    folder.mkdir(parents=True)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr(torch.hub, "download_url_to_file", unreachable)
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", unreachable)
    # A folder set earlier in the process would win over the environment.
    monkeypatch.setattr(torch.hub, "_hub_dir", None)
    return folder


@_BOTH
def test_without_internet_access_the_error_names_the_file_and_its_path(
    checkpoints: Path, published: _Published
) -> None:
    with pytest.raises(WeightsUnavailableError) as refused:
        catalog.find(published.name).build()
    message = str(refused.value)
    assert "no route to host" in message
    assert f"put {published.address} at {checkpoints / published.file}" in message
    assert f"serve {published.name}:random" in message
    assert "\n" not in message


@_BOTH
def test_weights_at_that_path_are_served(checkpoints: Path, published: _Published) -> None:
    random = catalog.find(f"{published.name}:random").build().module.state_dict()
    saved = {name: torch.full_like(tensor, 3) for name, tensor in random.items()}
    published.save(saved, checkpoints / published.file)
    loaded = catalog.find(published.name).build().module.state_dict()
    assert loaded.keys() == saved.keys()
    assert all(loaded[name].equal(tensor) for name, tensor in saved.items())


@_BOTH
@pytest.mark.parametrize(
    "content",
    [b"", b"<html>This site is blocked.</html>", b"PK\x03\x04" + b"\0" * 100],
    ids=["empty", "a proxy's page", "cut short"],
)
def test_a_cached_file_without_weights_is_a_start_error(
    checkpoints: Path, published: _Published, content: bytes
) -> None:
    (checkpoints / published.file).write_bytes(content)
    with pytest.raises(StartError, match=published.file):
        catalog.find(published.name).build()


@_BOTH
def test_weights_of_another_network_are_a_start_error(checkpoints: Path, published: _Published) -> None:
    published.save({"weight": torch.zeros(2)}, checkpoints / published.file)
    with pytest.raises(StartError):
        catalog.find(published.name).build()


def test_weights_of_the_hub_are_served_unchanged(
    checkpoints: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    state = catalog.find(f"{TIMM.name}:random").build().module.state_dict()
    save_file({name: torch.full_like(tensor, 2) for name, tensor in state.items()}, tmp_path / "model.safetensors")
    calls: list[object] = []

    def download(*args: object, **options: object) -> str:
        calls.append((*args, options))
        return str(tmp_path / "model.safetensors")

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    loaded = catalog.find(TIMM.name).build().module.state_dict()
    assert calls == [("timm/test_resnet.r160_in1k", "model.safetensors", {"revision": None})]
    assert all(bool((tensor == 2).all()) for tensor in loaded.values())
    assert not list(checkpoints.iterdir())


def test_weights_that_have_only_an_address_are_not_unpickled(checkpoints: Path) -> None:
    class Malicious:
        def __reduce__(self) -> tuple[object, ...]:
            return (Path.touch, (checkpoints / "run",))

    torch.save({"state_dict": Malicious()}, checkpoints / "timm--gcvit_tiny.pth")
    with pytest.raises(WeightsUnavailableError, match=r"gcvit_tiny_224_nvidia-ac783954\.pth at "):
        catalog.find("timm/gcvit_tiny").build()
    assert not (checkpoints / "run").exists()
