"""mosec: a Rust HTTP server, processes that decode and processes that run batches, with tensors sent between them."""

from __future__ import annotations

import os

import torch

# mosec reads its settings at import.
from benchmarks.peers.classifier import DECODERS, MAX_BATCH_SIZE, PORT, WORKERS, Answer, Classifier, preprocess

os.environ |= {
    "MOSEC_ADDRESS": "127.0.0.1",
    "MOSEC_PORT": str(PORT),
    "MOSEC_TIMEOUT": "120000",
    "MOSEC_MAX_REQUEST_SIZE": str(64 * 2**20),
    "MOSEC_LOG_LEVEL": "warning",
}
from mosec import Server, Worker

MAX_BATCH_DELAY_MS = 5


class Decode(Worker):
    """Decodes JPEG bytes to (3, crop, crop) uint8."""

    def __init__(self) -> None:
        super().__init__()
        torch.set_num_threads(1)

    def deserialize(self, data: bytes) -> bytes:
        """Return the raw body."""
        return data

    def forward(self, data: bytes) -> torch.Tensor:
        """Decode one image."""
        return preprocess(data)

    def serialize_ipc(self, data: torch.Tensor) -> bytes:
        """Return raw pixels, without pickle."""
        return data.contiguous().numpy().tobytes()


class Inference(Worker):
    """Classifies batches of decoded images."""

    def __init__(self) -> None:
        super().__init__()
        self.classifier = Classifier()

    def deserialize_ipc(self, data: bytes) -> torch.Tensor:
        """Map raw pixels to (3, 224, 224) uint8."""
        return torch.frombuffer(bytearray(data), dtype=torch.uint8).view(3, 224, 224)

    def forward(self, data: list[torch.Tensor]) -> list[Answer]:
        """Run one forward."""
        return self.classifier.classify(torch.stack(data))


if __name__ == "__main__":
    server = Server()
    server.append_worker(Decode, num=DECODERS, route="/classify")
    server.append_worker(
        Inference, num=WORKERS, max_batch_size=MAX_BATCH_SIZE, max_wait_time=MAX_BATCH_DELAY_MS, route="/classify"
    )
    server.run()
