"""mosec: a Rust front, worker processes that decode, worker processes that run batches, tensors sent between them."""

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
    """JPEG bytes to (3, crop, crop) uint8."""

    def __init__(self) -> None:
        super().__init__()
        torch.set_num_threads(1)

    def deserialize(self, data: bytes) -> bytes:
        """The raw body, as it is."""
        return data

    def forward(self, data: bytes) -> torch.Tensor:
        """One image."""
        return preprocess(data)

    def serialize_ipc(self, data: torch.Tensor) -> bytes:
        """Raw pixels, without pickle."""
        return data.contiguous().numpy().tobytes()


class Inference(Worker):
    """Batches of what Decode gave."""

    def __init__(self) -> None:
        super().__init__()
        self.classifier = Classifier()

    def deserialize_ipc(self, data: bytes) -> torch.Tensor:
        """Raw pixels to (3, 224, 224) uint8."""
        return torch.frombuffer(bytearray(data), dtype=torch.uint8).view(3, 224, 224)

    def forward(self, data: list[torch.Tensor]) -> list[Answer]:
        """One forward."""
        return self.classifier.classify(torch.stack(data))


if __name__ == "__main__":
    server = Server()
    server.append_worker(Decode, num=DECODERS, route="/classify")
    server.append_worker(
        Inference, num=WORKERS, max_batch_size=MAX_BATCH_SIZE, max_wait_time=MAX_BATCH_DELAY_MS, route="/classify"
    )
    server.run()
