"""Measure the savings of an inner layer: parameters, floating-point operations and the time of a forward.

python -m benchmarks.inner_layer resnet50 layer3
"""

from __future__ import annotations

import sys
from statistics import median
from time import perf_counter

import torch
from torch.utils.flop_counter import FlopCounterMode

from models import backends
from models.backends.pytorch import served_network
from models.loading.load import LoadedModel, load
from models.networks import architectures
from models.networks.network import Network
from models.networks.specs import Classifier, FeatureLayer, ModelSpec

_IMAGES = 8
_ROUNDS = 9


def main(name: str, node: str) -> None:
    networks = {"the whole": _loaded(name, None), node: _loaded(name, FeatureLayer(node))}
    side = networks[node].transform.crop
    images = torch.rand(_IMAGES, 3, side, side).contiguous(memory_format=torch.channels_last)
    served = {what: served_network(model) for what, model in networks.items()}
    # Alternately, so that other load affects all alike.
    rounds = [{what: _seconds(network, images) for what, network in served.items()} for _ in range(_ROUNDS)]
    for what, network in served.items():
        took = median(seconds[what] for seconds in rounds)
        gflop = _flops(network, images[:1]) / 1e9
        print(  # noqa: T201 - what it is for
            f"{what}: {networks[what].parameters / 1e6:.2f} million parameters, {gflop:.2f} GFLOP an image, "
            f"{took / _IMAGES * 1e3:.1f} ms an image"
        )


def _loaded(name: str, features: FeatureLayer | None) -> LoadedModel:
    def build() -> Classifier:
        architecture = architectures.find(name)
        return Classifier(architecture.build(None), architecture.transform, architecture.labels, features)

    return load(ModelSpec(name, name, build), backends.place("cpu", "fp32", "eager"))


def _seconds(network: Network, images: torch.Tensor) -> float:
    with torch.inference_mode():
        started_at = perf_counter()
        network(images)
        return perf_counter() - started_at


def _flops(network: Network, images: torch.Tensor) -> int:
    with FlopCounterMode(display=False) as counted, torch.no_grad():
        network(images)
    return int(counted.get_total_flops())


if __name__ == "__main__":
    main(*sys.argv[1:3])
