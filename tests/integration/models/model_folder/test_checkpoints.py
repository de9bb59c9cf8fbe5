"""Checkpoints as people have them: read as tensors by name, put into a network, and nothing in them run."""

from __future__ import annotations

import argparse
import os
import pickle
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from models.hardware import memory
from models.interface.errors import ModelFolderError
from models.model_folder import checkpoint, fitting


def network(classes: int | None = 3) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return nn.Sequential(
            OrderedDict(conv=nn.Conv2d(3, 4, 3), bn=nn.BatchNorm2d(4), head=nn.Linear(4, classes or 1000))
        )


def trained() -> nn.Module:
    """A network whose tensors are not those that it is made with."""
    module = network()
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(1)
    return module


def saved(held: object, file: Path, **options: bool) -> Path:
    torch.save(held, file, **options)
    return file


def same(module: nn.Module, other: nn.Module) -> bool:
    theirs = other.state_dict()
    return all(tensor.equal(theirs[name]) for name, tensor in module.state_dict().items())


STATE = trained().state_dict()


@pytest.mark.parametrize(
    "held",
    [
        STATE,
        {"state_dict": STATE, "epoch": 3, "optimizer": {"state": {}, "lr": 0.1}},
        {"model": STATE, "epoch": 3},
        {"model_state_dict": STATE},
        {"model": {"state_dict": STATE}},
        {f"module.{name}": tensor for name, tensor in STATE.items()},
        {"state_dict": {f"model.{name}": tensor for name, tensor in STATE.items()}, "pytorch-lightning_version": "2.5"},
        {"state_dict": {f"module.model.{name}": tensor for name, tensor in STATE.items()}},
        {f"_orig_mod.{name}": tensor for name, tensor in STATE.items()},
        {name: nn.Parameter(tensor) if tensor.is_floating_point() else tensor for name, tensor in STATE.items()},
        {name: tensor for name, tensor in STATE.items() if not name.endswith("num_batches_tracked")},
    ],
    ids=lambda held: "-".join(list(held)[:2]),
)
def test_wrappers_of_training_around_a_state_dict_are_removed(held: object, tmp_path: Path) -> None:
    module = network()
    file = saved(held, tmp_path / "model.pt")
    fitting.load(module, checkpoint.read(file), file, "it")
    assert same(module, trained())


def test_safetensors_and_checkpoints_of_pytorch_before_1_6_are_read(tmp_path: Path) -> None:
    save_file(STATE, tmp_path / "model.safetensors")
    old = saved(STATE, tmp_path / "model.pth", _use_new_zipfile_serialization=False)
    for file in (tmp_path / "model.safetensors", old):
        module = network()
        fitting.load(module, checkpoint.read(file), file, "it")
        assert same(module, trained())


def test_a_prefix_of_the_network_itself_is_kept(tmp_path: Path) -> None:
    module = nn.Module()
    module.model = trained()
    fresh = nn.Module()
    fresh.model = network()
    file = saved(module.state_dict(), tmp_path / "model.pt")
    fitting.load(fresh, checkpoint.read(file), file, "it")
    assert same(fresh, module)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_weights_are_converted_to_the_precision_of_the_network(dtype: torch.dtype, tmp_path: Path) -> None:
    module = network()
    file = saved(trained().to(dtype).state_dict(), tmp_path / "model.pt")
    fitting.load(module, checkpoint.read(file), file, "it")
    assert {parameter.dtype for parameter in module.parameters()} == {torch.float32}
    torch.testing.assert_close(module.state_dict(), trained().state_dict(), rtol=1e-2, atol=1e-2)


def test_the_number_of_classes_is_the_number_of_rows_of_the_head() -> None:
    wrapped = {f"module.{name}": tensor for name, tensor in STATE.items()}
    assert fitting.classes_of(wrapped, network) == 3
    assert fitting.classes_of({"conv.weight": STATE["conv.weight"]}, network) is None


def test_missing_unexpected_and_misshapen_tensors_are_listed_and_counted(tmp_path: Path) -> None:
    tensors = dict(STATE)
    del tensors["conv.bias"]
    tensors["loss.weight"] = torch.ones(3)
    tensors["head.weight"] = torch.ones(7, 4)
    tensors["bn.bias"] = torch.ones(4, dtype=torch.int8)
    with pytest.raises(ModelFolderError) as refused:
        fitting.load(network(), tensors, tmp_path / "model.pt", "mine of 3 classes")
    message = str(refused.value)
    assert "model.pt: does not fit mine of 3 classes: 1 tensors missing, 1 unexpected, 2 of another shape: " in message
    for fault in (
        "conv.bias (4,) is missing",
        "loss.weight (3,) has no place",
        "head.weight is (7, 4), not (3, 4)",
        "bn.bias is (4,) int8, not (4,)",
    ):
        assert fault in message


def test_at_most_ten_mismatches_are_listed(tmp_path: Path) -> None:
    strange = {f"layer.{number}": torch.ones(1) for number in range(30)}
    with pytest.raises(ModelFolderError, match="30 unexpected") as refused:
        fitting.load(network(), strange, tmp_path / "model.pt", "mine")
    message = str(refused.value)
    assert message.count("is missing") + message.count("has no place") == 10
    assert message.endswith("; …")


class _RunsWhenUnpickled:
    def __reduce__(self) -> tuple[Callable[..., object], tuple[object, ...]]:
        return os.mkdir, ("run",)


@pytest.mark.parametrize("options", [{}, {"_use_new_zipfile_serialization": False}], ids=["zip", "before 1.6"])
def test_a_whole_pickled_model_is_refused_with_the_line_that_converts_it(
    options: dict[str, bool], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = saved(trained(), tmp_path / "model.pt", **options)
    with pytest.raises(ModelFolderError, match=r"is a whole pickled model \(torch\.nn\.modules") as refused:
        checkpoint.read(file)
    program = str(refused.value).split('python -c "')[1].rstrip('"')
    monkeypatch.chdir(tmp_path)
    exec(program)  # noqa: S102 - the line of the error message
    module = network()
    fitting.load(module, checkpoint.read(tmp_path / "weights.pt"), file, "it")
    assert same(module, trained())


def test_pickled_objects_are_refused_with_the_command_that_saves_the_tensors_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = saved({"state_dict": STATE, "args": argparse.Namespace(lr=0.1)}, tmp_path / "model.pt")
    with pytest.raises(ModelFolderError, match=r"holds pickled objects \(argparse\.Namespace\)") as refused:
        checkpoint.read(file)
    program = str(refused.value).split('python -c "')[1].rstrip('"')
    monkeypatch.chdir(tmp_path)
    exec(program)  # noqa: S102 - as above
    assert checkpoint.read(tmp_path / "weights.pt").keys() == STATE.keys()


def test_a_torchscript_archive_is_refused_with_the_line_that_converts_it(tmp_path: Path) -> None:
    file = tmp_path / "model.pt"
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("model/code/__torch__.py", "")
        archive.writestr("model/data.pkl", pickle.dumps({}))
    with pytest.raises(ModelFolderError, match=r"is a TorchScript program.*torch\.jit\.load\('model\.pt'\)"):
        checkpoint.read(file)


def test_no_code_of_a_checkpoint_is_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for number, held in enumerate((_RunsWhenUnpickled(), {"state_dict": STATE, "x": _RunsWhenUnpickled()})):
        file = saved(held, tmp_path / f"{number}.pt")
        with pytest.raises(ModelFolderError):
            checkpoint.read(file)
        (tmp_path / "plain.pt").write_bytes(pickle.dumps(held, protocol=2))
        with pytest.raises(ModelFolderError):
            checkpoint.read(tmp_path / "plain.pt")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("name", ["model.pt", "model.safetensors"])
@pytest.mark.parametrize("share", [0, 0.3, 0.9])
def test_a_truncated_file_is_refused(name: str, share: float, tmp_path: Path) -> None:
    file = tmp_path / name
    if file.suffix == ".safetensors":
        save_file(STATE, file)
    else:
        saved(STATE, file)
    whole = file.read_bytes()
    file.write_bytes(whole[: int(share * len(whole))])
    with pytest.raises(ModelFolderError) as refused:
        checkpoint.read(file)
    assert "whole" in str(refused.value)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("held", "message"),
    [
        (torch.ones(3), "holds a Tensor, and not tensors by name"),
        ([STATE], "holds a list, and not tensors by name"),
        ({"epoch": 3, "lr": 0.1}, "holds no tensors by name.*it holds epoch, lr"),
        ({}, "it holds nothing"),
    ],
)
def test_the_error_for_a_checkpoint_without_named_tensors_describes_its_content(
    held: object, message: str, tmp_path: Path
) -> None:
    with pytest.raises(ModelFolderError, match=message):
        checkpoint.read(saved(held, tmp_path / "model.pt"))


def test_a_file_of_text_is_no_checkpoint(tmp_path: Path) -> None:
    (tmp_path / "model.pt").write_text("version https://git-lfs.github.com/spec/v1\n")
    with pytest.raises(ModelFolderError, match=r"is no checkpoint that torch\.save has written"):
        checkpoint.read(tmp_path / "model.pt")


def _bomb(file: Path) -> Path:
    """A checkpoint as torch.save writes it, the numbers of one tensor replaced by 64 MiB of zeros, compressed."""
    saved({"weight": torch.ones(2**24)}, file)
    with zipfile.ZipFile(file) as archive:
        parts = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in parts.items():
            archive.writestr(name, bytes(len(content)) if name.endswith("/data/0") else content)
    return file


def test_a_checkpoint_that_unpacks_to_far_more_than_its_size_is_not_unpacked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = _bomb(tmp_path / "model.pt")
    # What PyTorch would make of it.
    assert torch.load(file, weights_only=True)["weight"].shape == (2**24,)
    monkeypatch.delattr(torch, "load")
    with pytest.raises(ModelFolderError, match=r"says that it unpacks to 67\.1 MB, more than 4 times its size"):
        checkpoint.read(file)


@pytest.mark.parametrize("name", ["model.pt", "model.safetensors"])
def test_a_checkpoint_for_which_there_is_no_memory_is_not_read(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / name
    if file.suffix == ".safetensors":
        save_file(STATE, file)
    else:
        saved(STATE, file)
    monkeypatch.setattr(memory, "free_bytes", lambda _device: 100)
    with pytest.raises(ModelFolderError, match=r"needs 0\.0 MB of memory, and 0\.0 MB are free"):
        checkpoint.read(file)


@pytest.mark.parametrize(
    "tensor",
    [torch.ones(1).expand(2**22), torch.ones(1, 1).expand(2**12, 2**12)],
    ids=["one number many times", "a matrix of one number"],
)
def test_a_tensor_that_repeats_a_few_numbers_is_refused(tensor: torch.Tensor, tmp_path: Path) -> None:
    file = saved({"weight": tensor}, tmp_path / "model.pt")
    assert file.stat().st_size < 10_000
    with pytest.raises(ModelFolderError, match=r"holds weight as .* and only 4 bytes of it"):
        checkpoint.read(file)


@pytest.mark.filterwarnings("ignore:Validating sparse tensor invariants")
@pytest.mark.parametrize(
    "tensor",
    [torch.ones(2**30, device="meta"), torch.sparse_coo_tensor([[0]], [1.0], (2**30,), check_invariants=True)],
    ids=["meta", "sparse"],
)
def test_an_incomplete_tensor_is_refused(tensor: torch.Tensor, tmp_path: Path) -> None:
    file = saved({"weight": tensor}, tmp_path / "model.pt")
    with pytest.raises(ModelFolderError, match="holds weight without all of its numbers"):
        checkpoint.read(file)


def test_views_of_one_storage_are_read(tmp_path: Path) -> None:
    both = torch.arange(2.0**19)
    held = checkpoint.read(saved({"one": both[: 2**18], "other": both[2**18 :]}, tmp_path / "model.pt"))
    assert torch.cat([held["one"], held["other"]]).equal(both)


@pytest.mark.parametrize("length", [16 * 2**20 + 1, 2**63])
def test_a_safetensors_header_of_more_than_16_mib_is_not_read(length: int, tmp_path: Path) -> None:
    file = tmp_path / "model.safetensors"
    file.write_bytes(length.to_bytes(8, "little") + b"{}")
    with pytest.raises(ModelFolderError, match=f"its header would have {length} bytes"):
        checkpoint.read(file)


def test_an_empty_tensor_does_not_give_the_number_of_classes() -> None:
    rows = torch.empty(10**9, 0)
    assert fitting.classes_of({**STATE, "head.weight": rows, "head.bias": torch.ones(3)}, network) == 3
    assert fitting.classes_of({"head.weight": rows}, network) is None
