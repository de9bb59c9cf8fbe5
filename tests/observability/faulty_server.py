"""`gradless serve` with a null model whose behaviour is in the file ORDER, the first argument.

Behaviours: `well`, `slow`, `hang`, `fail`, `out of memory`, `gradients` (the network enables them itself) and `die`
(the batcher's thread ends, and no restart succeeds). The second argument is a folder that replaces the kernel's cgroup
files; its file `own` names the cgroup of the process.
"""

from __future__ import annotations

import ctypes
import sys
import threading
import time
from pathlib import Path

import torch

from app.process.logs import configure_logging
from app.server.server import serve
from app.settings import load_settings
from gradless import memory
from models.backends.backend import BackendOptions
from models.backends.pytorch import NullBackend
from models.interface.request import NEVER_CANCELLED, CancelToken
from models.loading.load import LoadedModel
from models.networks.network import FeaturesAndLogits, Network

ORDER, CONTROL_GROUPS = map(Path, sys.argv[1:])

# Above the objective of one second.
SLOW_S = 1.3
POLL_S = 0.05

original_init, original_run, original_forward = NullBackend.__init__, NullBackend.run, Network.forward


def start(self: NullBackend, model: LoadedModel, options: BackendOptions) -> None:
    wait_while("die")
    original_init(self, model, options)


def run(self: NullBackend, pixels: torch.Tensor, cancel_token: CancelToken = NEVER_CANCELLED) -> FeaturesAndLogits:
    match ORDER.read_text():
        case "slow":
            time.sleep(SLOW_S)
        case "hang":
            wait_while("hang")
        case "fail":
            raise RuntimeError("failing as ordered")
        case "out of memory":
            torch.empty(2**60)
    return original_run(self, pixels, cancel_token)


def forward(self: Network, images: torch.Tensor) -> FeaturesAndLogits:
    if ORDER.read_text() != "gradients":
        return original_forward(self, images)
    with torch.inference_mode(mode=False), torch.enable_grad():
        return original_forward(self, images.clone())


def wait_while(order: str) -> None:
    while ORDER.read_text() == order:
        time.sleep(POLL_S)


def kill_when_ordered() -> None:
    """Raise SystemExit in the batcher's thread from outside."""
    while ORDER.read_text() != "die":
        time.sleep(POLL_S)
    # A batch that is running would fail with the exception, and the thread would go on.
    while batchers := [thread for thread in threading.enumerate() if thread.name == "batcher-null"]:
        for batcher in batchers:
            ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(batcher.ident or 0), ctypes.py_object(SystemExit))
        time.sleep(POLL_S)


memory._CGROUPS, memory._OWN_CGROUPS = CONTROL_GROUPS, CONTROL_GROUPS / "own"  # noqa: SLF001
NullBackend.__init__ = start  # type: ignore[method-assign]
NullBackend.run = run  # type: ignore[method-assign]
Network.forward = forward  # type: ignore[method-assign]
threading.Thread(target=kill_when_ordered, daemon=True).start()
settings = load_settings()
configure_logging(settings.log_level, settings.log_format)
serve(settings)
