"""Run one optimization: write the new model folder, compare it with the original, and rename it when complete."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, suppress
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

from models import backends
from models.hardware.placement import at_precision
from models.inference.image_job import ItemOutput
from models.interface.errors import GradlessError, JobError
from models.loading import catalog
from models.model_folder.description import is_name
from models.networks.specs import ModelSpec
from models.offline import files, reading
from models.offline.parts import unfinished_folder
from models.offline.reading import Reading
from models.offline.running import Runner
from models.optimizing import methods
from models.optimizing.comparison import Accuracy, Rate, Report, Side, Tally, Truth, race, truth_of
from models.optimizing.methods import Method, Source, find_source
from models.serving.model_instance import ServingOptions

REPORT = "report.json"

_STAGES: dict[Method, str] = {"prune": "removing channels", "int8": "quantizing", "bf16": "rounding weights"}

_PACKAGES = ("gradless", "torch", "torchvision", "timm", "torch-pruning", "nncf", "openvino")


@dataclass(frozen=True, slots=True, kw_only=True)
class OptimizationRequest:
    """Options of an optimization.

    `ratio` is the share of channels to prune. Files above `max_bytes` are skipped. With an agreement below
    `min_agreement`, 0..1, no folder is written. `command` goes into the report.
    """

    model: str
    method: Method
    images: Path
    output: Path
    ratio: float
    min_agreement: float
    batch_size: int
    rounds: int
    workers: int
    max_bytes: int
    command: str


class Optimization:
    """Makes one new folder. Not thread-safe."""

    def __init__(
        self, request: OptimizationRequest, options: ServingOptions, on_step: Callable[[str], None] = lambda _: None
    ) -> None:
        """Find the model and the images. `on_step` is called with a description of each step.

        Raises StartError if the options cannot be carried out.
        """
        output = request.output
        if output.exists():
            raise JobError(f"-o {output} exists already and is not overwritten")
        if not is_name(output.resolve().name):
            raise JobError(f"-o {output}: the folder's name becomes the model's: use letters, digits, '.', '_' and '-'")
        self._request = request
        self._options = options
        self._on_step = on_step
        self._source: Source = find_source(request.model)
        self._files = files.find([request.images])
        # Check this before any slow step. Serving would raise the same error.
        placement = backends.place(options.device, options.precision, options.backend)
        if request.method != "prune":
            backends.check(at_precision(placement, request.method))

    def run(self) -> tuple[Report, bool]:
        """Make the folder. Return the report, and whether the folder was kept: not with too little agreement.

        No folder is left if this raises StartError, ForwardError, OSError or KeyboardInterrupt.
        """
        output = self._request.output.resolve()
        output.parent.mkdir(parents=True, exist_ok=True)
        with unfinished_folder(output) as folder:
            report = self._made(folder)
            if report.agreement.top1 < self._request.min_agreement:
                return report, False
            (folder / REPORT).write_text(json.dumps(asdict(report), indent=2) + "\n", encoding="utf-8")
            folder.rename(output)
        return report, True

    def _made(self, folder: Path) -> Report:
        request, stage = self._request, self._on_step
        stage(f"loading {request.model}")
        with closing(self._runner(self._source.spec)) as before:
            images = Reading(before.model.transform, self._options.limits, request.max_bytes)
            stage(_STAGES[request.method])
            used = self._write(folder, before, images)
            stage("loading the new model")
            made = catalog.find(str(folder))
            with closing(self._runner(made)) as after:
                return self._compared(before, after, made, images, used)

    def _runner(self, spec: ModelSpec) -> Runner:
        return Runner(replace(self._options, models=(spec,)), batch_size=self._request.batch_size)

    def _write(self, folder: Path, before: Runner, images: Reading) -> int:
        """Write the new folder. Return the number of images that the method used."""
        request, source, name = self._request, self._source, self._request.output.resolve().name
        match request.method:
            case "prune":
                return methods.prune(source, folder, name, ratio=request.ratio, images=self._files, reading=images)
            case "int8":
                return methods.int8(source, before.model, folder, name, images=self._files)
            case "bf16":
                methods.bf16(source, folder, name)
                return 0

    def _compared(self, before: Runner, after: Runner, made: ModelSpec, images: Reading, used: int) -> Report:
        request = self._request
        self._on_step("comparing answers")
        truth = truth_of(self._files, request.images, before.model.labels)
        tally, left_out, pixels = self._tallied(before, after, images, truth)
        agreement, accuracies = tally.agreement(), tally.accuracies()
        self._on_step("timing both models")
        rates = race((before, after), pixels, request.rounds)
        old, new = map(_side, (self._source.spec, made), (before, after), rates, accuracies)
        return Report(
            source=request.model,
            name=request.output.resolve().name,
            method=request.method,
            ratio=request.ratio if request.method == "prune" else None,
            used_images=used,
            left_out=left_out,
            agreement=agreement,
            before=old,
            after=new,
            batch_size=len(pixels),
            rounds=request.rounds,
            remarks=tuple(_remarks(request.method, used, labelled=truth is not None)),
            versions=_versions(),
            made_at=datetime.now(UTC).isoformat(timespec="seconds"),
            command=request.command,
        )

    def _tallied(
        self, before: Runner, after: Runner, images: Reading, truth: Truth | None
    ) -> tuple[Tally, int, torch.Tensor]:
        """Compare both models' answers. Return the tally, the number of unreadable files, and the largest batch."""
        tally, done, left_out, largest = Tally(truth), 0, 0, torch.empty(0)
        classes = len(before.model.labels)
        request = self._request
        for batch in reading.batches(self._files, images, batch_size=request.batch_size, workers=request.workers):
            left_out += len(batch.faults)
            old, new = (runner.answer(batch.pixels, top_k=classes) for runner in (before, after))
            for path, answers in batch.with_answers(list(zip(old, new, strict=True))):
                if not isinstance(answers, str):
                    tally.add(path, *map(_answered, answers))
            if len(batch.pixels) > len(largest):
                largest = batch.pixels
            done += len(batch.paths)
            self._on_step(f"comparing answers, {done} of {len(self._files)} images")
        return tally, left_out, largest


def _answered(answer: ItemOutput | GradlessError) -> ItemOutput:
    if isinstance(answer, GradlessError):
        raise answer
    return answer


def _side(spec: ModelSpec, runner: Runner, rate: Rate, accuracy: Accuracy | None) -> Side:
    model = runner.model
    placement = model.placement
    return Side(
        fingerprint=model.fingerprint,
        device=str(placement.device),
        dtype=placement.dtype_name,
        backend=placement.backend,
        parameters=model.parameters,
        weight_bytes=methods.weight_bytes(spec, model),
        rate=rate,
        accuracy=accuracy,
    )


def _remarks(method: Method, used: int, *, labelled: bool) -> Iterator[str]:
    if method == "prune":
        yield "The model was not trained after pruning: fine-tune it, then evaluate it again."
    if used:
        yield f"{used} of the compared images were used to make it, which improves its agreement a little."
    if not labelled:
        yield "No accuracy: that needs one folder for each class, named as its label, in the folder of images."


def _versions() -> Mapping[str, str]:
    found: dict[str, str] = {}
    for package in _PACKAGES:
        with suppress(PackageNotFoundError):
            found[package] = version(package)
    return found
