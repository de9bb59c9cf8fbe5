"""Check a model folder: load it as the server does, and describe it."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from rich.console import Console
from rich.markup import escape

from app.main import start_serving
from app.reports.terminal import PatientConsole, table, waiting
from app.settings import Settings
from gradless.sentences import in_bytes, in_seconds
from models.images.preprocessing import Transform
from models.images.samples import draw, encode
from models.interface.errors import ImageError, JobError
from models.interface.request import InferenceRequest
from models.interface.results import ModelCard, Prediction, ScoredClass
from models.interface.runtime import Runtime
from models.interface.telemetry import Task, Telemetry
from models.loading.catalog import refuse_file
from models.model_folder import description
from models.model_folder.building import transform_of
from models.model_folder.description import Description, Reference
from models.offline.reading import read_file

_CLOSE_TIMEOUT_S = 30.0

# Forwards of one image; their median is shown.
_FORWARDS = 5

_LABELS_SHOWN = 5

# Most probable classes of --image that are printed.
_TOP = 5


@dataclass(frozen=True, slots=True)
class Findings:
    """Results of the check. `answered` is the top class of the reference image, None without such an image. `fault` is
    a line on how it differs from the expected answer, or None. `top` are the classes of a further image."""

    card: ModelCard
    labels: tuple[str, ...]
    transform: Transform
    forward_seconds: float
    answered: ScoredClass | None
    fault: str | None
    top: tuple[ScoredClass, ...]


def checked(folder: Path, settings: Settings, image: Path | None) -> Findings:
    """Load and run the model. `settings` have the folder as their only model. Raises GradlessError."""
    refuse_file(folder)
    described = description.read(folder)
    encoded = None if image is None else _read(image, settings)
    with waiting(Console(stderr=True), f"loading {described.name}"):
        runtime = start_serving(settings, Telemetry())
    try:
        [card] = runtime.cards.values()
        predictions = asyncio.run(_predictions(runtime, card, described))
        top = () if image is None or encoded is None else asyncio.run(_top(runtime, card, image, encoded))
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
        top,
    )


def _read(image: Path, settings: Settings) -> bytes:
    try:
        return read_file(str(image), settings.max_image_bytes)
    except (ImageError, OSError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise JobError(f"{image} cannot be read: {reason}") from error


async def _top(runtime: Runtime, card: ModelCard, image: Path, encoded: bytes) -> tuple[ScoredClass, ...]:
    """Return the most probable classes of an image. Raises JobError."""
    if not card.classes:
        raise JobError(f"{card.name} has no classes, which --image would print")
    [result] = (await runtime.predict(None, InferenceRequest("classify", [encoded], top_k=_TOP))).results
    if isinstance(result, ImageError):
        raise JobError(f"{image}: {result}")
    return result.classes


async def _predictions(runtime: Runtime, card: ModelCard, described: Description) -> list[Prediction]:
    """Run the reference image, or any other, several times."""
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
    top = classes[0]
    expected = next(scored for scored in classes if scored.label == reference.label)
    if top.label != reference.label:
        return (
            f"{reference.image.name} is classified as {top.label!r} ({top.probability:.3f}), not as "
            f"{reference.label!r} ({expected.probability:.3f}): check [transform] and the order of labels"
        )
    if reference.probability is not None and abs(expected.probability - reference.probability) > reference.tolerance:
        return (
            f"{reference.image.name} is {reference.label!r} with probability {expected.probability:.3f}, more than "
            f"{reference.tolerance:g} from {reference.probability:g}: check [transform]"
        )
    return None


def show(findings: Findings) -> None:
    """Show the results on stdout."""
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
        "reference": "none given: the answers were not checked",
    }
    if findings.answered is not None:
        rows["reference"] = f"{findings.answered.label}, {findings.answered.probability:.3f}"
    rows_shown = table("", "")
    for what, found in rows.items():
        rows_shown.add_row(what, escape(found))
    console = PatientConsole(highlight=False)
    console.print(rows_shown)
    if findings.top:
        classes = table("class", "probability", numbers=1)
        for scored in findings.top:
            classes.add_row(escape(scored.label), f"{scored.probability:.3f}")
        console.print(classes)


def _some(labels: Sequence[str]) -> str:
    """Return the first few labels as a list in words."""
    return ", ".join(labels[:_LABELS_SHOWN]) + (", …" if len(labels) > _LABELS_SHOWN else "")
