"""The registry of backends: names, devices and construction."""

from __future__ import annotations

import re
import sys
from types import ModuleType
from typing import get_args

import pytest
import torch

from app.settings import Settings
from models import backends
from models.backends import BACKENDS, BackendOptions, BatchHints, Registration
from models.backends.backend import Backend
from models.interface.errors import DeviceUnavailableError
from models.interface.extras import Package, install_command
from models.interface.request import NEVER_CANCELLED, CancelToken
from models.loading.load import LoadedModel, load
from models.networks.network import FeaturesAndLogits
from models.networks.specs import ModelSpec

CPU = torch.device("cpu")


class AnotherBackend(Backend):
    """Runs the loaded network unchanged."""

    def __init__(self, model: LoadedModel, options: BackendOptions) -> None:
        self.hints = BatchHints(max_batch_size=options.max_batch_size or 3, warm_up_sizes=(1,))
        self.network = model.network
        self._normalize = model.normalize

    def run(self, pixels: torch.Tensor, cancel_token: CancelToken = NEVER_CANCELLED) -> FeaturesAndLogits:  # noqa: ARG002 - in one piece
        answer: FeaturesAndLogits = self.network(self._normalize(pixels))
        return answer

    def close(self) -> None:
        """Do nothing."""


def test_one_module_and_one_entry_in_the_registry_make_a_backend(
    tiny: ModelSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = ModuleType("models.backends.another")
    module.AnotherBackend = AnotherBackend  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setitem(BACKENDS, "another", Registration(classes={"cpu": "another.AnotherBackend"}))

    model = load(tiny, backends.place("cpu", "fp32", "another"))
    made = backends.make(model, BackendOptions())

    assert isinstance(made, AnotherBackend)
    assert (made.hints.max_batch_size, made.hints.max_concurrent_batches, made.hints.overlap_min_size) == (3, 1, None)
    assert made.run(torch.zeros(2, 3, 32, 32, dtype=torch.uint8)).features.shape[0] == 2


def test_the_backend_setting_lists_the_backends_of_the_registry() -> None:
    assert get_args(Settings.model_fields["backend"].annotation) == (backends.AUTO, *backends.names())


@pytest.mark.parametrize("name", BACKENDS)
def test_every_registered_class_is_a_backend(name: str) -> None:
    for path in BACKENDS[name].classes.values():
        made = backends.class_of(path)
        assert isinstance(made, type)
        assert Backend in made.__mro__


@pytest.mark.parametrize(
    ("installed", "device", "expected"),
    [
        (True, "cpu", "openvino"),
        (False, "cpu", "eager"),
        (True, "cuda", "eager"),
        (True, "mps", "eager"),
    ],
)
def test_auto_selects_openvino_on_a_cpu_that_has_it_installed_and_else_eager(
    monkeypatch: pytest.MonkeyPatch,
    installed: bool,  # noqa: FBT001 - a parameter of the test
    device: str,
    expected: str,
) -> None:
    monkeypatch.setattr(Package, "installed", installed)
    monkeypatch.setattr(backends, "device_of", torch.device)
    assert backends.place(device, "fp32", "auto").backend == expected


@pytest.mark.parametrize(
    ("device", "backend", "message"),
    [
        ("cuda", "openvino", "the openvino backend is for CPUs; use eager or compiled"),
        ("mps", "openvino", "the openvino backend is for CPUs; use eager"),
        ("mps", "compiled", "the compiled backend is for CUDA and CPUs; use eager"),
        ("cpu", "tensorrt", "there is no backend 'tensorrt'; use auto, eager, compiled, openvino"),
    ],
)
def test_a_backend_that_cannot_run_on_a_device_is_refused_with_the_alternatives(
    monkeypatch: pytest.MonkeyPatch, device: str, backend: str, message: str
) -> None:
    monkeypatch.setattr(backends, "device_of", torch.device)
    with pytest.raises(DeviceUnavailableError, match=re.escape(message)):
        backends.place(device, "fp32", backend)


@pytest.mark.parametrize("devices", ["cpu,cpu", "cpu, cuda:0"])
def test_devices_that_cannot_share_a_model_are_refused(monkeypatch: pytest.MonkeyPatch, devices: str) -> None:
    monkeypatch.setattr(backends, "device_of", torch.device)
    with pytest.raises(DeviceUnavailableError, match="list different devices of one type, such as cuda:0,cuda:1"):
        backends.place_all(devices, "fp32", "eager")


def test_what_uses_one_device_takes_the_first_of_a_list() -> None:
    assert str(backends.place("cpu:0, cpu", "fp32", "eager").device) == "cpu:0"


def test_a_backend_whose_package_is_not_installed_is_refused_with_the_command_that_installs_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(Package, "installed", False)
    with pytest.raises(DeviceUnavailableError, match=re.escape(install_command("openvino"))):
        backends.place("cpu", "fp32", "openvino")


@pytest.mark.parametrize("backend", ["eager", "compiled"])
def test_int8_is_refused_for_a_backend_that_does_not_compute_in_it(backend: str) -> None:
    with pytest.raises(DeviceUnavailableError, match="int8 is for the openvino backend; use bf16 or fp32"):
        backends.place("cpu", "int8", backend)
