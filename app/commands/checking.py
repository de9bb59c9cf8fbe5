"""A model folder tried as it would be served, and what is told of it."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from app.main import start_serving
from app.reports.lens_terminal import PatientConsole, waiting
from app.settings import Settings
from models.images.samples import draw, encode
from models.images.transforms import Transform
from models.interface.errors import ImageError
from models.interface.request import InferenceRequest
from models.interface.results import ModelCard, Prediction, ScoredClass
from models.interface.runtime import Runtime
from models.interface.telemetry import NoTelemetry, Task
from models.interface.units import in_bytes, in_seconds
from models.model_folder import description
from models.model_folder.building import transform_of
from models.model_folder.description import Description, Reference

_CLOSE_TIMEOUT_S = 30.0

# Of one image alone, the median of which is told.
_FORWARDS = 5

_LABELS_TOLD = 5


@dataclass(frozen=True, slots=True)
class Findings:
    """What was found. `answered`: what the reference picture was taken for, None where there is no such picture;
    `fault`: how that differs from what was expected, as a line."""

    card: ModelCard
    labels: tuple[str, ...]
    transform: Transform
    forward_seconds: float
    answered: ScoredClass | None
    fault: str | None


def checked(folder: Path, settings: Settings) -> Findings:
    """Load, warm up and ask. `settings` have the folder as their only model. Raises GradlessError."""
    described = description.read(folder)
    with waiting(Console(stderr=True), f"loading {described.name}"):
        runtime = start_serving(settings, NoTelemetry())
    try:
        [card] = runtime.cards.values()
        predictions = asyncio.run(_asked(runtime, card, described))
    finally:
        runtime.close(_CLOSE_TIMEOUT_S)
    classes = predictions[0].classes
    return Findings(
        card,
        tuple(scored.label for scored in sorted(classes, key=lambda scored: scored.index)),
        transform_of(described),
        median(prediction.batch.forward_seconds for prediction in predictions),
        None if described.reference is None else classes[0],
        None if described.reference is None else _fault(described.reference, classes),
    )


async def _asked(runtime: Runtime, card: ModelCard, described: Description) -> list[Prediction]:
    """The same picture some times: the reference, or any."""
    reference = described.reference
    encoded = encode(draw("clock"), "PNG") if reference is None else reference.image.read_bytes()
    task: Task = "classify" if card.classes else "features"
    predictions = []
    for _ in range(_FORWARDS):
        [result] = (await runtime.predict(None, InferenceRequest(task, [encoded], top_k=card.classes))).results
        if isinstance(result, ImageError):
            raise described.refusal("reference.image", str(result))
        predictions.append(result)
    return predictions


def _fault(reference: Reference, classes: tuple[ScoredClass, ...]) -> str | None:
    likeliest = classes[0]
    expected = next(scored for scored in classes if scored.label == reference.label)
    if likeliest.label != reference.label:
        return (
            f"{reference.image.name} is taken for {likeliest.label!r} ({likeliest.probability:.3f}), not for "
            f"{reference.label!r} ({expected.probability:.3f}): is [transform] as in training, and the order of labels?"
        )
    if reference.probability is not None and abs(expected.probability - reference.probability) > reference.tolerance:
        return (
            f"{reference.image.name} is {reference.label!r} with probability {expected.probability:.3f}, more than "
            f"{reference.tolerance:g} from {reference.probability:g}: is [transform] as in training?"
        )
    return None


def show(findings: Findings) -> None:
    """The table of what was found, on stdout."""
    card, transform = findings.card, findings.transform
    shape = " x ".join(map(str, card.feature_shape))
    rows = {
        "model": f"{card.name}, {card.architecture}",
        "parameters": f"{card.parameters:,}, {in_bytes(card.weight_bytes)}",
        "classes": f"{card.classes}: {_some(findings.labels)}" if card.classes else "none",
        "features": shape if card.feature_layer is None else f"{shape} of {card.feature_layer}",
        "transform": f"resize {transform.resize}, crop {transform.crop}, {transform.interpolation}, {transform.fit}",
        "mean": ", ".join(f"{value:g}" for value in transform.mean),
        "std": ", ".join(f"{value:g}" for value in transform.std),
        "runs": f"{card.backend}, {card.dtype}, {card.device}",
        "fingerprint": card.fingerprint,
        "forward": f"{in_seconds(findings.forward_seconds)} for one image",
        "reference": "none given: whether it answers rightly was not tried",
    }
    if findings.answered is not None:
        rows["reference"] = f"{findings.answered.label}, {findings.answered.probability:.3f}"
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_header=False)
    for what, found in rows.items():
        table.add_row(what, escape(found))
    PatientConsole(highlight=False).print(table)


def _some(labels: Sequence[str]) -> str:
    """The first few of them."""
    return ", ".join(labels[:_LABELS_TOLD]) + (", …" if len(labels) > _LABELS_TOLD else "")
