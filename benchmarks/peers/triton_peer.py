"""Triton Inference Server with a Python function that decodes and classifies, by nvidia-pytriton.

Takes a raw request (header `Inference-Header-Content-Length: 0`): the whole body is one JPEG.
"""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from numpy.typing import NDArray
from pytriton.decorators import batch
from pytriton.model_config import DynamicBatcher, ModelConfig, Tensor
from pytriton.triton import Triton, TritonConfig

from benchmarks.peers.classifier import DECODERS, MAX_BATCH_SIZE, PORT, WORKERS, Classifier, preprocess

_MAX_BATCH_DELAY_US = 5000


class ClassifierFunction:
    """The function that Triton calls with each batch."""

    def __init__(self) -> None:
        self._classifier = Classifier()
        self._decoders = ThreadPoolExecutor(DECODERS, initializer=torch.set_num_threads, initargs=(1,))

    @batch
    def __call__(self, image: NDArray[np.object_]) -> list[NDArray[np.object_]]:
        """Map (N, 1) JPEGs to (N, 1) JSON documents."""
        pixels = list(self._decoders.map(preprocess, image[:, 0]))
        answers = self._classifier.classify(torch.stack(pixels))
        return [np.array([[json.dumps(answer).encode()] for answer in answers], dtype=object)]


if __name__ == "__main__":
    config = TritonConfig(
        http_address="127.0.0.1",
        http_port=PORT,
        allow_grpc=False,
        allow_metrics=False,
        log_verbose=0,
        exit_on_error=True,
    )
    with Triton(config=config) as triton:
        triton.bind(
            model_name="classifier",
            infer_func=[ClassifierFunction() for _ in range(WORKERS)],
            inputs=[Tensor(name="image", dtype=bytes, shape=(1,))],
            outputs=[Tensor(name="answer", dtype=bytes, shape=(1,))],
            config=ModelConfig(
                max_batch_size=MAX_BATCH_SIZE,
                batcher=DynamicBatcher(max_queue_delay_microseconds=_MAX_BATCH_DELAY_US),
            ),
        )
        triton.serve()
