"""Compare arms of the default model as serving does, and print by how many bytes that enlarges the process. In between,
640 MB are retained. A process of its own, in which nothing else allocates."""

from __future__ import annotations

import sys
from dataclasses import replace

import psutil

from gradless.records import ComparisonOptions
from models import backends
from models.backends import BackendOptions
from models.backends.pytorch import EagerBackend
from models.hardware import cores, memory
from models.inference.engine import Engine
from models.loading import catalog
from models.loading.load import load
from models.serving.lens import compare_served

cores.use_one_core_in_this_thread()
memory.retain_freed_pages()
model = load(catalog.find(catalog.DEFAULT_MODEL), backends.place("cpu", "fp32", "eager"))
engine = Engine(model, EagerBackend(model, BackendOptions(max_batch_size=8)))
options = ComparisonOptions(batch_size=1, iterations=1, arms=("grad", "inference_mode"))
compare_served(engine, options)
# What a forward of eight keeps without gradients, such as buffers of threads, is not of a comparison.
compare_served(engine, replace(options, batch_size=8, arms=("inference_mode",)))
before = psutil.Process().memory_info().rss
compare_served(engine, replace(options, batch_size=8))
sys.stdout.write(str(psutil.Process().memory_info().rss - before))
