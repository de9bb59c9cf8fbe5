"""MLServer: adaptive batching in the process that answers HTTP and gRPC, and a worker process that decodes and
classifies.

Takes encoded files of datatype BYTES: base64 in JSON, or as they are over gRPC. Its REST API has no binary tensors.
"""

from __future__ import annotations

import asyncio
import os
import tempfile
from concurrent.futures import ThreadPoolExecutor

import torch
from mlserver import MLModel, MLServer, ModelSettings, Settings
from mlserver.codecs import Base64Codec
from mlserver.types import InferenceRequest, InferenceResponse, ResponseOutput

from benchmarks.peers.classifier import DECODERS, MAX_BATCH_SIZE, MODEL, PORT, THREADS, WORKERS, Classifier, preprocess

_MAX_BATCH_DELAY_S = 0.005


class ClassifierRuntime(MLModel):
    """Decodes in threads and runs one forward at a time, so that the worker's event loop is not blocked."""

    async def load(self) -> bool:
        """Set up the worker process."""
        self._classifier = Classifier()
        self._decoders = ThreadPoolExecutor(DECODERS, initializer=torch.set_num_threads, initargs=(1,))
        self._forwards = ThreadPoolExecutor(1, initializer=torch.set_num_threads, initargs=(THREADS,))
        return True

    async def predict(self, payload: InferenceRequest) -> InferenceResponse:
        """Map (N, 1) files to (N, 5) texts, `probability:index:label`, as Triton's classification extension has it."""
        files = self.decode(payload.inputs[0], default_codec=Base64Codec)
        loop = asyncio.get_running_loop()
        pixels = await asyncio.gather(*(loop.run_in_executor(self._decoders, preprocess, file) for file in files))
        answers = await loop.run_in_executor(self._forwards, self._classifier.classify, torch.stack(pixels))
        texts = [
            f"{found['probability']:.6f}:{found['index']}:{found['label']}" for answer in answers for found in answer
        ]
        output = ResponseOutput(name="probabilities", datatype="BYTES", shape=[len(files), 5], data=texts)
        return InferenceResponse(model_name=self.name, outputs=[output])


async def _serve() -> None:
    with tempfile.TemporaryDirectory() as folder:
        settings = Settings(
            debug=False,
            host="127.0.0.1",
            http_port=PORT,
            grpc_port=int(os.environ["PEER_GRPC_PORT"]),
            # It would need a port of its own.
            metrics_endpoint=None,
            parallel_workers=WORKERS,
            environments_dir=folder,
            metrics_dir=folder,
        )
        model = ModelSettings(
            name=MODEL,
            # By name: worker processes import it.
            implementation="benchmarks.peers.mlserver_peer.ClassifierRuntime",
            max_batch_size=MAX_BATCH_SIZE,
            max_batch_time=_MAX_BATCH_DELAY_S,
        )
        await MLServer(settings).start([model])


if __name__ == "__main__":
    asyncio.run(_serve())
