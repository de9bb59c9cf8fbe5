"""Load a model of the catalog or a folder: a network in eval mode, on its device, with a fingerprint.

Never under inference_mode: parameters created there stay inference tensors, and the lens could not run a forward with
gradients on them.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from pathlib import Path
from time import perf_counter

import torch

from models.hardware.placement import Placement, at_precision
from models.images.preprocessing import Normalize, Transform, pixels_needed
from models.interface.errors import ModelFolderError, StartError, UnsupportedArchitectureError
from models.loading.calibration import Calibration
from models.model_folder.description import FILE_NAME
from models.networks.cutting import cut_at_head, cut_at_layer, without_head
from models.networks.network import Network
from models.networks.specs import Classifier, FeatureLayer, ModelSpec

# An OpenVINO network is a .xml file and its weights, which have the same name with this suffix.
WEIGHTS_SUFFIX = ".bin"


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """A model on its device as published, in float32. `network` takes the output of `normalize` for uint8 pixels.

    Its parameters keep requires_grad=True, so that the lens measures the forward of a server that does not disable
    gradients. Backends serve it in their own form and in the placement's precision."""

    name: str
    architecture: str
    network: Network
    normalize: Normalize
    transform: Transform
    labels: tuple[str, ...]
    features: FeatureLayer | None
    placement: Placement
    calibration: Calibration | None
    quantized: Path | None
    fingerprint: str
    load_seconds: float

    @property
    def parameters(self) -> int:
        return sum(parameter.numel() for parameter in self.network.parameters())

    @property
    def weight_bytes(self) -> int:
        return sum(tensor.nbytes for tensor in self.network.state_dict().values())


def load(
    spec: ModelSpec, placement: Placement, calibration: Calibration | None = None, *, exact_jpeg: bool = False
) -> LoadedModel:
    """Build the network, load its weights, cut it at the head or at the layer to serve, and move it to its device.
    `calibration` is for int8 only. The backend and precision of `spec` override `placement`. `exact_jpeg`: decode JPEGs
    in full, whatever the transform says. Raises StartError."""
    if torch.is_inference_mode_enabled():
        raise StartError("a model must be loaded outside inference_mode")
    started_at = perf_counter()
    if spec.backend is not None:
        placement = replace(placement, backend=spec.backend)
    if spec.served_as.precision is not None:
        placement, calibration = at_precision(placement, spec.served_as.precision), None
    quantized = spec.served_as.quantized
    classifier = spec.build()
    network = _cut(spec, classifier)
    labels = classifier.labels if network.classes else ()
    if len(labels) != network.classes:
        raise StartError(f"{spec.name} has {network.classes} classes and {len(labels)} labels")
    transform = replace(classifier.transform, exact_jpeg=True) if exact_jpeg else classifier.transform
    network.to(placement.device)
    normalize = Normalize(transform).to(placement.device)
    return LoadedModel(
        name=spec.name,
        architecture=spec.architecture,
        network=network.eval(),
        normalize=normalize.eval(),
        transform=transform,
        labels=labels,
        features=classifier.features,
        placement=placement,
        calibration=calibration,
        quantized=quantized,
        fingerprint=fingerprint(
            spec.architecture,
            network,
            transform,
            classifier.features,
            precision=_fingerprinted_precision(placement, calibration, quantized),
            backend=placement.backend,
        ),
        load_seconds=perf_counter() - started_at,
    )


def _fingerprinted_precision(placement: Placement, calibration: Calibration | None, quantized: Path | None) -> str:
    """Return the precision, and for int8 a digest of what else the results depend on."""
    if quantized is None:
        return placement.precision if calibration is None else f"{placement.precision} {calibration.digest}"
    digest = hashlib.sha256()
    for part in (quantized, quantized.with_suffix(WEIGHTS_SUFFIX)):
        with part.open("rb") as stream:
            digest.update(hashlib.file_digest(stream, "sha256").digest())
    return f"{placement.precision} {digest.hexdigest()[:16]}"


def _cut(spec: ModelSpec, classifier: Classifier) -> Network:
    side = classifier.transform.crop
    if classifier.features is None:
        cut = cut_at_head if classifier.labels else without_head
        return cut(spec.name, classifier.module, side)
    try:
        return cut_at_layer(spec.name, classifier.module, classifier.features, side)
    except UnsupportedArchitectureError as error:
        if spec.folder is None:
            raise
        raise ModelFolderError(spec.folder / FILE_NAME, error.reason, "features") from error


def fingerprint(
    architecture: str,
    network: Network,
    transform: Transform,
    features: FeatureLayer | None,
    *,
    precision: str,
    backend: str,
) -> str:
    """Return 16 hex digits of a SHA-256 over architecture, weights, transform, size of reduced JPEGs, served layer,
    precision and backend. Feature vectors of equal fingerprints are comparable."""
    digest = hashlib.sha256(repr((architecture, transform, pixels_needed(transform), precision, backend)).encode())
    # Hash these only when they differ from the default, so that existing fingerprints stay valid.
    if transform.fit != "crop":
        digest.update(transform.fit.encode())
    if features is not None:
        digest.update(repr(features).encode())
    for name, tensor in network.state_dict().items():
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        digest.update(tensor.detach().cpu().contiguous().numpy().data)
    return digest.hexdigest()[:16]
