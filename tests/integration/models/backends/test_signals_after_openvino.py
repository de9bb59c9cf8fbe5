"""Loaded models must not change signal handling: a signal after a model is freed is handled."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

# In a process of its own, for it may end by it. Signal handlers of Python's run on the stack that OpenVINO gave the
# main thread, where it has given one.
_RELEASE_A_MODEL = """
import os, signal, sys, threading
from pathlib import Path
from models.backends import BackendOptions
from models import backends
from models.loading import catalog
from models.loading.load import load

held = [
    backends.make(
        load(catalog.find(catalog.DEFAULT_MODEL), backends.place("cpu", "fp32", "openvino")),
        BackendOptions(max_batch_size=1, cache_folder=Path(sys.argv[1])),
    )
]
releasing = threading.Thread(target=held.clear)
releasing.start()
releasing.join()
signal.signal(signal.SIGTERM, lambda *_: print("handled"))
os.kill(os.getpid(), signal.SIGTERM)
print("alive")
"""


def test_a_model_released_by_another_thread_leaves_the_signal_stack_of_the_main_thread(
    warm_command: Any, cache_folder: Path, tmp_path: Path
) -> None:
    script = tmp_path / "release.py"
    script.write_text(_RELEASE_A_MODEL)
    ended = warm_command.run([script, cache_folder], os.environ)
    assert (ended.returncode, ended.stdout) == (0, b"handled\nalive\n"), ended.stderr
