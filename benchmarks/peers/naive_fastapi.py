"""A naive service: FastAPI, a sync endpoint, Pillow, one image a forward, no_grad.

Starlette runs the endpoint in a pool of 40 threads, so forwards run concurrently.
"""

from __future__ import annotations

from io import BytesIO
from typing import Annotated

import torch
import uvicorn
from fastapi import Body, FastAPI
from PIL import Image
from torchvision.transforms import v2

from benchmarks.peers import classifier
from benchmarks.peers.classifier import DEVICE, MODEL, PORT, PREPROCESSING, Answer, answer

app = FastAPI(title=f"naive {MODEL}")
network = classifier.network().eval().to(DEVICE)
transform = v2.Compose(
    [
        v2.Resize(PREPROCESSING.resize, interpolation=PREPROCESSING.interpolation),
        v2.CenterCrop(PREPROCESSING.crop),
        v2.PILToTensor(),
        v2.ToDtype(torch.float32),
        v2.Normalize(PREPROCESSING.mean, PREPROCESSING.std),
    ]
)


@app.post("/")
def classify(image: Annotated[bytes, Body(media_type="image/jpeg")]) -> Answer:
    """Return the five most probable classes of one image."""
    picture = transform(Image.open(BytesIO(image)).convert("RGB"))
    with torch.no_grad():
        probabilities = network(picture[None].to(DEVICE)).softmax(dim=1)[0]
    likeliest = probabilities.topk(5)
    return answer(likeliest.indices.tolist(), likeliest.values.tolist())


if __name__ == "__main__":
    uvicorn.run(app, host="127.0.0.1", port=PORT, log_level="warning")
