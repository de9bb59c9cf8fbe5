"""LitServe: processes that decode and run batches, fed by FastAPI through a queue.

No annotations from __future__: LitServe hands decode_request's to FastAPI, which needs the type and not its name.
"""

from typing import Annotated

import litserve as ls
import torch
from fastapi import Body

from benchmarks.peers.classifier import DEVICE, FRONTS, MAX_BATCH_SIZE, PORT, WORKERS, Answer, Classifier, preprocess

BATCH_TIMEOUT_S = 0.005


class ClassifierAPI(ls.LitAPI):
    """One image a request; LitServe makes the batches."""

    def setup(self, device: str) -> None:
        """Once for each worker process."""
        del device
        self.classifier = Classifier()

    def decode_request(self, request: Annotated[bytes, Body(media_type="image/jpeg")]) -> torch.Tensor:
        """The raw body to (3, crop, crop) uint8."""
        return preprocess(request)

    def batch(self, inputs: list[torch.Tensor]) -> torch.Tensor:
        """(N, 3, crop, crop) uint8."""
        return torch.stack(inputs)

    def predict(self, x: torch.Tensor) -> list[Answer]:
        """One forward."""
        return self.classifier.classify(x)

    def unbatch(self, output: list[Answer]) -> list[Answer]:
        """Answers are by image already."""
        return output

    def encode_response(self, output: Answer) -> Answer:
        """As JSON."""
        return output


if __name__ == "__main__":
    api = ClassifierAPI(max_batch_size=MAX_BATCH_SIZE, batch_timeout=BATCH_TIMEOUT_S, api_path="/")
    server = ls.LitServer(api, accelerator=DEVICE, devices=1, workers_per_device=WORKERS, timeout=120, fast_queue=True)
    server.run(host="127.0.0.1", port=PORT, num_api_servers=FRONTS, log_level="warning", generate_client_file=False)
