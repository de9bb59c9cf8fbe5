"""The conversion cache: whatever happens to an entry on disk, the right network is served."""

from __future__ import annotations

import errno
import logging
import os
import resource
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import openvino
import pytest
import torch

from models import backends
from models.backends import BackendOptions, openvino_conversion
from models.backends.openvino import OpenVinoBackend, _core
from models.backends.openvino_conversion import ConversionCache
from models.interface.errors import StartError, WarmUpError
from models.interface.telemetry import Telemetry
from models.loading.load import LoadedModel, load
from models.networks.network import FeaturesAndLogits
from models.networks.specs import Classifier, ModelSpec
from models.serving.runtime import LocalRuntime, ServingOptions


@pytest.fixture
def model(tiny: ModelSpec) -> LoadedModel:
    return load(tiny, backends.place("cpu", "fp32", "openvino"))


@pytest.fixture
def other(tiny: ModelSpec) -> ModelSpec:
    """Other weights in the same network."""

    def build() -> Classifier:
        classifier = tiny.build()
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            torch.manual_seed(1)
            for parameter in classifier.module.parameters():
                parameter.copy_(torch.randn_like(parameter))
        return classifier

    return replace(tiny, name="other", build=build)


@pytest.fixture(scope="module")
def convert() -> Callable[[LoadedModel], openvino.Model]:
    """The real conversion, done once for each network: it takes seconds."""
    done: dict[str, openvino.Model] = {}
    really = openvino_conversion._convert  # noqa: SLF001

    def converted(model: LoadedModel) -> openvino.Model:
        if model.fingerprint not in done:
            done[model.fingerprint] = really(model)
        return done[model.fingerprint].clone()

    return converted


@pytest.fixture(autouse=True)
def conversions(monkeypatch: pytest.MonkeyPatch, convert: Callable[[LoadedModel], openvino.Model]) -> list[LoadedModel]:
    """The models that were converted."""
    found: list[LoadedModel] = []

    def counted(model: LoadedModel) -> openvino.Model:
        found.append(model)
        return convert(model)

    monkeypatch.setattr(openvino_conversion, "_convert", counted)
    return found


def _right(model: LoadedModel, folder: Path) -> bool:
    """Whether the backend gives what the network gives."""
    pixels = torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8).contiguous(memory_format=torch.channels_last)
    with torch.inference_mode():
        found = OpenVinoBackend(model, BackendOptions(max_batch_size=2, cache_folder=folder)).run(pixels)
        expected: FeaturesAndLogits = model.network(model.normalize(pixels))
    return all(torch.allclose(one, two, atol=1e-4) for one, two in zip(found, expected, strict=True))


def _logged(caplog: pytest.LogCaptureFixture) -> list[str]:
    """Return the log lines of gradless."""
    return [
        record.getMessage()
        for record in caplog.records
        if record.name.startswith("models.") and record.levelno >= logging.WARNING
    ]


def _entry(folder: Path) -> Path:
    [entry] = folder.iterdir()
    return entry


def _flip(file: Path) -> None:
    content = bytearray(file.read_bytes())
    middle = len(content) // 2
    content[middle : middle + 4] = bytes(byte ^ 0x40 for byte in content[middle : middle + 4])
    file.write_bytes(content)


def _truncate(file: Path) -> None:
    os.truncate(file, file.stat().st_size // 2)


_DAMAGES: dict[str, Callable[[Path], None]] = {
    "flipped weights": lambda entry: _flip(entry / "network.bin"),
    "truncated network": lambda entry: _truncate(entry / "network.xml"),
    "empty digests": lambda entry: (entry / "digests.json").write_bytes(b""),
    "digests of something else": lambda entry: (entry / "digests.json").write_text("[1, 2]"),
    "deep digests": lambda entry: (entry / "digests.json").write_text("[" * 100_000),
    "no weights": lambda entry: (entry / "network.bin").unlink(),
    "empty folder": lambda entry: shutil.rmtree(entry) or entry.mkdir(),  # type: ignore[func-returns-value]
    "a file in its place": lambda entry: shutil.rmtree(entry) or (entry.write_text("no folder") and None),  # type: ignore[func-returns-value]
    "weights that are a folder": lambda entry: (entry / "network.bin").unlink() or (entry / "network.bin").mkdir(),  # type: ignore[func-returns-value]
}


@pytest.mark.parametrize("damage", _DAMAGES.values(), ids=_DAMAGES.keys())
def test_a_damaged_entry_is_converted_again_once_with_one_line_of_log(
    model: LoadedModel,
    conversions: list[LoadedModel],
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    damage: Callable[[Path], None],
) -> None:
    assert _right(model, tmp_path)
    damage(_entry(tmp_path))
    caplog.clear()
    assert _right(model, tmp_path)
    [line] = _logged(caplog)
    assert "converted again" in line
    assert _right(model, tmp_path)
    assert len(_logged(caplog)) == 1
    assert len(conversions) == 2
    # The damaged entry is gone.
    assert sorted(file.name for file in _entry(tmp_path).iterdir()) == ["digests.json", "network.bin", "network.xml"]


@pytest.mark.parametrize("swapped", ["entries", "weights"])
def test_entries_of_two_models_that_were_swapped_are_each_converted_again(
    model: LoadedModel, other: ModelSpec, conversions: list[LoadedModel], tmp_path: Path, swapped: str
) -> None:
    both = [model, load(other, model.placement)]
    entries: list[Path] = []
    for each in both:
        assert _right(each, tmp_path)
        entries += [entry for entry in tmp_path.iterdir() if entry not in entries]
    one, two = entries if swapped == "entries" else [entry / "network.bin" for entry in entries]
    one.rename(tmp_path / "aside")
    two.rename(one)
    (tmp_path / "aside").rename(two)
    assert all(_right(each, tmp_path) for each in both)
    assert len(conversions) == 4


def test_leftovers_of_a_killed_process_are_ignored_and_removed_once_old(model: LoadedModel, tmp_path: Path) -> None:
    leftovers = [tmp_path / "unfinished-old", tmp_path / "unfinished-new"]
    for folder in leftovers:
        folder.mkdir()
        (folder / "network.bin").write_bytes(b"half")
    os.utime(leftovers[0], (0, 0))
    assert _right(model, tmp_path)
    assert [folder.exists() for folder in leftovers] == [False, True]


class _Interrupted:
    """Do something once, in the middle of the next rename but `after`."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, action: Callable[[], None], after: int) -> None:
        self._left = after
        self._action: Callable[[], None] | None = action
        rename = Path.rename

        def interrupted(path: Path, target: Path) -> Path:
            self._left -= 1
            action, self._action = (self._action, None) if self._left < 0 else (None, self._action)
            if action is not None:
                action()
            return rename(path, target)

        monkeypatch.setattr(Path, "rename", interrupted)


@pytest.mark.parametrize("renames", [0, 1])
@pytest.mark.parametrize("there", [False, True], ids=["nothing there", "damaged"])
def test_of_two_processes_that_convert_at_once_one_entry_is_left_and_it_is_whole(
    model: LoadedModel,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
    *,
    there: bool,
    renames: int,
) -> None:
    cache = ConversionCache(_core(), tmp_path)
    network = openvino_conversion._convert(model)  # noqa: SLF001
    if there:
        cache.keep(network, "entry")
        _flip(tmp_path / "entry" / "network.bin")
    _Interrupted(monkeypatch, lambda: cache.keep(network, "entry"), renames)
    cache.keep(network, "entry")
    assert [entry.name for entry in tmp_path.iterdir()] == ["entry"]
    assert cache.read("entry") is not None
    assert not _logged(caplog)


@pytest.fixture
def full_disk() -> Iterator[None]:
    """Limit files to 2 KiB, which acts like a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2048, hard))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.usefixtures("full_disk")
def test_on_a_full_disk_a_model_is_served_and_no_partial_entry_is_left(
    model: LoadedModel, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    assert _right(model, tmp_path)
    [line] = _logged(caplog)
    assert "cannot be kept" in line
    assert "MB are free" in line
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("function", ["exists", "mkdir"])
def test_a_read_only_cache_folder_does_not_stop_the_start(
    model: LoadedModel,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
    function: str,
) -> None:
    refused = tmp_path / "cache"
    allowed: Callable[..., Any] = getattr(Path, function)

    def refuse(path: Path, *args: Any, **options: Any) -> Any:
        if path.is_relative_to(refused):
            raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(path))
        return allowed(path, *args, **options)

    monkeypatch.setattr(Path, function, refuse)
    assert _right(model, refused)
    [line] = _logged(caplog)
    assert os.strerror(errno.EROFS) in line


def test_a_file_instead_of_the_cache_folder_does_not_stop_the_start(model: LoadedModel, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    assert _right(model, tmp_path / "file")


def test_a_cache_folder_in_an_unknown_home_is_an_error_of_the_start(
    model: LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    def without_home(_path: Path) -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "expanduser", without_home)
    with pytest.raises(StartError, match="set HOME"):
        OpenVinoBackend(model, BackendOptions(cache_folder=Path("~/.cache/gradless")))


def _serve(spec: ModelSpec, folder: Path) -> LocalRuntime:
    return LocalRuntime(
        ServingOptions(models=[spec], device="cpu", backend="openvino", cache_folder=folder, max_batch_size=2),
        Telemetry(),
    )


def test_an_entry_with_another_network_is_detected_by_its_answer_and_converted_again(
    tiny: ModelSpec,
    other: ModelSpec,
    conversions: list[LoadedModel],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    convert: Callable[[LoadedModel], openvino.Model],
) -> None:
    # As if the files had been damaged before their digests were taken.
    model = load(tiny, backends.place("cpu", "fp32", "openvino"))
    wrong = load(other, model.placement)
    with monkeypatch.context() as patched:
        patched.setattr(openvino_conversion, "_convert", lambda _model: convert(wrong))
        OpenVinoBackend(model, BackendOptions(max_batch_size=2, cache_folder=tmp_path))
    conversions.clear()

    serving = _serve(tiny, tmp_path)
    assert serving.close(timeout_s=60)

    assert len(conversions) == 1
    assert [line for line in _logged(caplog) if "gives other numbers than PyTorch" in line]
    assert _right(model, tmp_path)
    assert len(conversions) == 1


def test_a_conversion_that_gives_other_answers_than_the_network_is_not_served(
    tiny: ModelSpec,
    other: ModelSpec,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    convert: Callable[[LoadedModel], openvino.Model],
) -> None:
    wrong = load(other, backends.place("cpu", "fp32", "openvino"))
    monkeypatch.setattr(openvino_conversion, "_convert", lambda _model: convert(wrong))
    with pytest.raises(WarmUpError, match="gives other numbers than PyTorch in float32"):
        _serve(tiny, tmp_path)
