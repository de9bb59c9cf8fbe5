"""`gradless serve` with the null model, which does as the file named on the command line says: `well`, `slow`, `hang`,
`fail`, `out of memory`, `gradients`, where the network switches them on by itself, and `die`, which ends the batcher's
thread and lets no other model start in its place. It takes itself to be in the container that the files of the second
argument, a folder, tell of as the kernel would: `own` says in which control group the process is."""

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
from gradless import cgroups
from models.backends.null import NullBackend
from models.interface.cancellation import Wanted, always
from models.loading.load import LoadedModel
from models.networks.network import FeaturesAndLogits, Network

ORDER, CONTROL_GROUPS = map(Path, sys.argv[1:])

# More than the objective of one second.
SLOW_S = 1.3
LOOK_S = 0.05

start_well, run_well, forward_well = NullBackend.__init__, NullBackend.run, Network.forward


def start(self: NullBackend, model: LoadedModel) -> None:
    wait_while("die")
    start_well(self, model)


def run(self: NullBackend, pixels: torch.Tensor, wanted: Wanted = always) -> FeaturesAndLogits:
    match ORDER.read_text():
        case "slow":
            time.sleep(SLOW_S)
        case "hang":
            wait_while("hang")
        case "fail":
            raise RuntimeError("told to fail")
        case "out of memory":
            torch.empty(2**60)
    return run_well(self, pixels, wanted)


def forward(self: Network, images: torch.Tensor) -> FeaturesAndLogits:
    if ORDER.read_text() != "gradients":
        return forward_well(self, images)
    with torch.inference_mode(mode=False), torch.enable_grad():
        return forward_well(self, images.clone())


def wait_while(order: str) -> None:
    while ORDER.read_text() == order:
        time.sleep(LOOK_S)


def kill_when_told() -> None:
    """An exception from outside, as the interpreter itself delivers one: nothing in the batcher provokes it."""
    while ORDER.read_text() != "die":
        time.sleep(LOOK_S)
    [batcher] = [thread for thread in threading.enumerate() if thread.name == "batcher-null"]
    ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(batcher.ident or 0), ctypes.py_object(SystemExit))


cgroups._ROOT, cgroups._OWN = CONTROL_GROUPS, CONTROL_GROUPS / "own"  # noqa: SLF001
NullBackend.__init__ = start  # type: ignore[method-assign]
NullBackend.run = run  # type: ignore[method-assign]
Network.forward = forward  # type: ignore[method-assign]
threading.Thread(target=kill_when_told, daemon=True).start()
settings = load_settings()
configure_logging(settings.log_level, settings.log_format)
serve(settings)
