"""Ray Serve: replicas with @serve.batch behind Ray's HTTP proxy."""

from __future__ import annotations

import asyncio
import signal
from concurrent.futures import ThreadPoolExecutor

import ray
import torch
from ray import serve
from starlette.requests import Request

from benchmarks.peers.classifier import MAX_BATCH_SIZE, PORT, THREADS, WORKERS, Answer, Classifier, preprocess

DECODE_THREADS = 1
BATCH_WAIT_S = 0.005
ONGOING = 512


def _one_thread() -> None:
    torch.set_num_threads(1)


class Deployment:
    """Decodes and runs forwards in threads, so that the replica's event loop is not blocked."""

    def __init__(self) -> None:
        self.classifier = Classifier()
        self.decoders = ThreadPoolExecutor(DECODE_THREADS, initializer=_one_thread)
        self.forwards = ThreadPoolExecutor(1, initializer=torch.set_num_threads, initargs=(THREADS,))

    async def __call__(self, request: Request) -> Answer:
        """A service of one image a request."""
        body = await request.body()
        pixels = await asyncio.get_running_loop().run_in_executor(self.decoders, preprocess, body)
        answer: Answer = await self.classify(pixels)
        return answer

    @serve.batch(max_batch_size=MAX_BATCH_SIZE, batch_wait_timeout_s=BATCH_WAIT_S)
    async def classify(self, images: list[torch.Tensor]) -> list[Answer]:
        """Run one forward."""
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self.forwards, self.classifier.classify, torch.stack(images))


if __name__ == "__main__":
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, object_store_memory=2**28)
    serve.start(http_options={"host": "127.0.0.1", "port": PORT, "request_timeout_s": 120})
    deployment = serve.deployment(
        Deployment,
        num_replicas=WORKERS,
        max_ongoing_requests=ONGOING,
        ray_actor_options={"num_cpus": 1},
        logging_config={"enable_access_log": False},
    )
    serve.run(deployment.bind(), route_prefix="/")
    signal.sigwait({signal.SIGTERM, signal.SIGINT})
    serve.shutdown()
    ray.shutdown()
