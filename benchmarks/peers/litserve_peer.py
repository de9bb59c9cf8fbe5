"""LitServe: processes that decode and run batches, fed by FastAPI through a queue.

No annotations from __future__: LitServe passes decode_request's to FastAPI, which needs the type and not its name.
"""

from typing import Annotated

import litserve as ls
import torch
from fastapi import Body

from benchmarks.peers.classifier import (
    DEVICE,
    HTTP_WORKERS,
    MAX_BATCH_SIZE,
    PORT,
    WORKERS,
    Answer,
    Classifier,
    preprocess,
)

BATCH_TIMEOUT_S = 0.005


class ClassifierAPI(ls.LitAPI):
    """A service of one image a request, batched by LitServe."""

    def setup(self, device: str) -> None:
        """Set up a worker process."""
        del device
        self.classifier = Classifier()

    def decode_request(self, request: Annotated[bytes, Body(media_type="image/jpeg")]) -> torch.Tensor:
        """Decode the raw body to (3, crop, crop) uint8."""
        return preprocess(request)

    def batch(self, inputs: list[torch.Tensor]) -> torch.Tensor:
        """Stack to (N, 3, crop, crop) uint8."""
        return torch.stack(inputs)

    def predict(self, x: torch.Tensor) -> list[Answer]:
        """Run one forward."""
        return self.classifier.classify(x)

    def unbatch(self, output: list[Answer]) -> list[Answer]:
        """Return the answers, which are one for each image."""
        return output

    def encode_response(self, output: Answer) -> Answer:
        """Return the answer for JSON."""
        return output


if __name__ == "__main__":
    api = ClassifierAPI(max_batch_size=MAX_BATCH_SIZE, batch_timeout=BATCH_TIMEOUT_S, api_path="/")
    server = ls.LitServer(api, accelerator=DEVICE, devices=1, workers_per_device=WORKERS, timeout=120, fast_queue=True)
    server.run(
        host="127.0.0.1", port=PORT, num_api_servers=HTTP_WORKERS, log_level="warning", generate_client_file=False
    )
