"""`gradless optimize` makes a smaller model in a new folder, compares it as served, and keeps it only if it agrees."""

from __future__ import annotations

import json
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from models import backends
from models.backends import BackendOptions
from models.images.samples import draw, encode
from models.interface.errors import DeviceUnavailableError, JobError, StartError, UnsupportedArchitectureError
from models.loading import catalog
from models.loading.load import load
from models.optimizing import methods
from models.optimizing.comparison import Report
from models.optimizing.job import Optimization, OptimizationRequest
from models.serving.model_instance import ServingOptions

LABELS = [f"class {index}" for index in range(10)]

# A residual block, whose two branches must lose the same channels.
CODE = """
from torch import nn


class Block(nn.Module):
    def __init__(self, channels):
        super().__init__()
        self.convolution = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(channels)

    def forward(self, maps):
        return (maps + self.norm(self.convolution(maps))).relu()


def build(num_classes=10):
    return nn.Sequential(
        nn.Conv2d(3, 32, 3, stride=2, padding=1), nn.BatchNorm2d(32), nn.ReLU(), Block(32),
        nn.Conv2d(32, 32, 3, groups=32, padding=1), nn.Conv2d(32, 64, 1), nn.BatchNorm2d(64), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, num_classes),
    )


def attention(num_classes=10):
    return nn.Sequential(
        nn.Conv2d(3, 32, 8, stride=8), nn.Flatten(2), nn.LayerNorm(16), nn.Linear(16, 16), nn.Flatten(),
        nn.Linear(512, num_classes),
    )
"""

Optimize = Callable[..., tuple[Report, bool]]


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A model folder with code of its own and seeded random weights."""
    folder = tmp_path / "source"
    folder.mkdir()
    (folder / "net.py").write_text(CODE)
    (folder / "model.toml").write_text(
        f'architecture = "net:build"\nweights = "random"\nlabels = {json.dumps(LABELS)}\n'
        '[transform]\nresize = 36\ncrop = 32\ninterpolation = "bilinear"\n'
        "mean = [0.5, 0.5, 0.5]\nstd = [0.5, 0.5, 0.5]\n"
    )
    return folder


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """Drawn samples turned four ways, in a folder for one class, and a file that is no image."""
    folder = tmp_path / "images" / "class 3"
    folder.mkdir(parents=True)
    for sample in ("clock", "traffic-light", "crossword"):
        for degrees in (0, 90, 180, 270):
            (folder / f"{sample}-{degrees}.png").write_bytes(encode(draw(sample).rotate(degrees), "PNG"))
    (folder / "broken.png").write_bytes(b"no image")
    return folder.parent


@pytest.fixture
def optimize(source: Path, images: Path, tmp_path: Path) -> Optimize:
    def run(method: str, on_step: Callable[[str], None] = lambda _: None, **options: object) -> tuple[Report, bool]:
        values = {"model": str(source), "output": tmp_path / "made", "ratio": 0.4, "min_agreement": 0.0} | options
        backend = values.pop("backend", "eager")
        request = OptimizationRequest(
            **values, method=method, images=images, batch_size=8, rounds=2, workers=0, max_bytes=2**20, command="test"
        )
        serving = ServingOptions(backend=backend, device="cpu", cache_folder=tmp_path / "cache")
        return Optimization(request, serving, on_step).run()

    return run


def test_a_pruned_folder_is_served_without_torch_pruning(
    optimize: Optimize, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = {file.name: file.read_bytes() for file in source.iterdir() if file.is_file()}
    report, kept = optimize("prune")

    assert kept
    assert report.after.parameters < 0.8 * report.before.parameters
    assert report.after.weight_bytes < report.before.weight_bytes
    # Serving does not need torch-pruning.
    monkeypatch.setitem(sys.modules, "torch_pruning", None)
    made = load(catalog.find(str(tmp_path / "made")), backends.place("cpu", "fp32", "eager"))
    assert made.fingerprint == report.after.fingerprint != report.before.fingerprint
    sizes = json.loads((tmp_path / "made" / "pruned.json").read_text())
    depthwise = sizes["4"]
    assert depthwise["groups"] == depthwise["in_channels"] == depthwise["out_channels"] < 32
    assert made.network.classes == 10
    assert {file.name: file.read_bytes() for file in source.iterdir() if file.is_file()} == before


def test_the_report_describes_both_models(optimize: Optimize, tmp_path: Path) -> None:
    report, _ = optimize("prune")

    written = json.loads((tmp_path / "made" / "report.json").read_text())
    assert written["agreement"]["images"] == 12
    assert written["left_out"] == 1
    assert written["ratio"] == 0.4
    assert written["used_images"] == 12
    assert written["versions"]["torch-pruning"]
    # The folders are named as classes, so that there is an accuracy.
    assert report.before.accuracy is not None
    assert written["before"]["accuracy"]["top1"] == report.before.accuracy.top1
    for side in (report.before, report.after):
        assert 0 < side.rate.lower_quartile <= side.rate.median <= side.rate.upper_quartile
    assert any("not trained after pruning" in remark for remark in report.remarks)


def test_a_pruned_folder_can_be_pruned_again(optimize: Optimize, tmp_path: Path) -> None:
    first, _ = optimize("prune", ratio=0.3)
    second, _ = optimize("prune", model=str(tmp_path / "made"), output=tmp_path / "again", ratio=0.3)

    assert second.before.fingerprint == first.after.fingerprint
    assert second.after.parameters < first.after.parameters
    assert catalog.find(str(tmp_path / "again")).build().labels == tuple(LABELS)


def test_bf16_halves_the_weights_and_is_served_in_bf16_with_any_setting(optimize: Optimize, tmp_path: Path) -> None:
    report, _ = optimize("bf16")

    weights = load_file(tmp_path / "made" / "weights.safetensors")
    assert weights["0.weight"].dtype == torch.bfloat16
    assert (report.before.dtype, report.after.dtype) == ("float32", "bfloat16")
    assert report.agreement.mean_probability_change < 0.05
    assert report.agreement.feature_cosine is not None
    assert report.agreement.feature_cosine > 0.99
    made = load(catalog.find(str(tmp_path / "made")), backends.place("cpu", "fp32", "eager"))
    assert made.placement.precision == "bf16"


def test_a_folder_in_int8_is_served_without_nncf_and_images_but_not_with_another_transform(
    optimize: Optimize, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    report, _ = optimize("int8", backend="openvino")

    assert report.after.dtype == "int8"
    assert report.after.weight_bytes < 0.5 * report.before.weight_bytes
    folder = tmp_path / "made"
    assert tomllib.loads((folder / "model.toml").read_text())["serve"] == {"precision": "int8", "quantized": "int8.xml"}
    monkeypatch.setitem(sys.modules, "nncf", None)
    spec = catalog.find(str(folder))
    assert load(spec, backends.place("cpu", "fp32", "openvino")).fingerprint == report.after.fingerprint
    with pytest.raises(DeviceUnavailableError, match="int8 is for the openvino backend"):
        backends.make(load(spec, backends.place("cpu", "fp32", "eager")), BackendOptions())
    with pytest.raises(JobError, match="already in int8"):
        optimize("prune", model=str(folder), output=tmp_path / "again")
    toml = folder / "model.toml"
    toml.write_text(toml.read_text().replace("resize = 36", "resize = 40"))
    model = load(catalog.find(str(folder)), backends.place("cpu", "fp32", "openvino"))
    with pytest.raises(StartError, match="was made from other weights or another transform"):
        backends.make(model, BackendOptions(max_batch_size=4, cache_folder=tmp_path / "cache"))


def test_with_too_little_agreement_no_folder_is_left(optimize: Optimize, tmp_path: Path) -> None:
    report, kept = optimize("bf16", min_agreement=1.01)

    assert not kept
    assert report.agreement.images == 12
    assert sorted(path.name for path in tmp_path.iterdir()) == ["images", "source"]


def test_an_interrupt_leaves_no_folder(optimize: Optimize, tmp_path: Path) -> None:
    there: list[list[str]] = []

    def interrupt(stage: str) -> None:
        if stage == "timing both models":
            there.append([path.name for path in tmp_path.iterdir() if path.name.startswith(".made.")])
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        optimize("bf16", interrupt)
    assert len(there[0]) == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["images", "source"]


def test_an_existing_folder_is_not_overwritten(optimize: Optimize, tmp_path: Path) -> None:
    (tmp_path / "made").mkdir()
    with pytest.raises(JobError, match="exists already"):
        optimize("bf16")
    with pytest.raises(JobError, match="folder's name becomes the model's"):
        optimize("bf16", output=tmp_path / "with spaces")


def test_a_network_that_cannot_be_rebuilt_is_refused(optimize: Optimize, source: Path, tmp_path: Path) -> None:
    toml = source / "model.toml"
    toml.write_text(toml.read_text().replace("net:build", "net:attention"))
    with pytest.raises(UnsupportedArchitectureError, match="cannot"):
        optimize("prune")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["images", "source"]


def test_a_precision_that_the_device_lacks_is_refused_before_loading(optimize: Optimize, tmp_path: Path) -> None:
    with pytest.raises(DeviceUnavailableError, match="int8 is for the openvino backend"):
        optimize("int8")
    assert not (tmp_path / "made").exists()


def test_the_default_model_can_be_optimized(tmp_path: Path) -> None:
    methods.bf16(methods.find_source(catalog.DEFAULT_MODEL), tmp_path, "made")

    assert tomllib.loads((tmp_path / "model.toml").read_text())["architecture"] == "timm/tf_efficientnet_lite0"
    made, original = catalog.find(str(tmp_path)).build(), catalog.find(catalog.DEFAULT_MODEL).build()
    rounded = {name: tensor.to(torch.bfloat16) for name, tensor in original.module.named_parameters()}
    assert all(torch.equal(tensor.to(torch.bfloat16), rounded[name]) for name, tensor in made.module.named_parameters())
