"""An optimization from a model's name to a new folder: made beside its place, compared with what it was made from, and
moved there when all of it is well."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

from models import backends
from models.hardware.placement import at_precision
from models.inference.batch_item import ItemOutput
from models.interface.errors import GradlessError, JobError
from models.loading import catalog
from models.model_folder.description import is_name
from models.networks.specs import ModelSpec
from models.offline import files, reading
from models.offline.reading import Reading
from models.offline.running import Runner
from models.optimizing import methods, sources, speed
from models.optimizing.agreement import Tally, Truth, truth_of
from models.optimizing.methods import Method
from models.optimizing.report import Accuracy, Rate, Report, Side
from models.optimizing.sources import Source
from models.serving.model_instance import ServingOptions

REPORT = "report.json"

_DOING: dict[Method, str] = {
    "prune": "judging and taking out channels",
    "int8": "quantizing",
    "bf16": "rounding weights",
}

_PACKAGES = ("gradless", "torch", "torchvision", "timm", "torch-pruning", "nncf", "openvino")


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """What is asked for. `ratio` is of the channels, for prune alone. `max_bytes`: a larger file is no image.
    `min_agreement`: with less, no folder is left. `command` is for the report."""

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


@dataclass(frozen=True, slots=True)
class Watching:
    """Who is told how far it is: of what is being done, and of images that were compared, of so many."""

    stage: Callable[[str], None]
    compared: Callable[[int, int], None]


class Optimization:
    """Makes one new folder. One thread."""

    def __init__(self, wanted: Wanted, options: ServingOptions, watching: Watching) -> None:
        """Finds the model and the images. Raises StartError for what cannot be done as asked."""
        output = wanted.output
        if output.exists():
            raise JobError(f"-o {output} is there already, and is not overwritten")
        if not is_name(output.resolve().name):
            raise JobError(f"-o {output}: the model will have the folder's name: letters, digits, '.', '_' and '-'")
        self._wanted = wanted
        self._options = options
        self._watching = watching
        self._source: Source = sources.find(wanted.model)
        self._files = files.find([wanted.images])
        # Before anything takes long, and in the words that will be said when it is served.
        placement = backends.place(options.device, options.precision, options.backend)
        if wanted.method != "prune":
            backends.check(at_precision(placement, wanted.method))

    def run(self) -> tuple[Report, bool]:
        """Make the folder; what it has brought, and whether it was kept, which it is not with too little agreement.
        Nothing of it is left either when this raises, as for an interrupt. Raises StartError, ForwardError, OSError."""
        output = self._wanted.output.resolve()
        output.parent.mkdir(parents=True, exist_ok=True)
        with _unfinished(output) as folder:
            report = self._made(folder)
            if report.agreement.top1 < self._wanted.min_agreement:
                return report, False
            (folder / REPORT).write_text(json.dumps(asdict(report), indent=2) + "\n", encoding="utf-8")
            folder.rename(output)
        return report, True

    def _made(self, folder: Path) -> Report:
        wanted, stage = self._wanted, self._watching.stage
        stage(f"loading {wanted.model}")
        with closing(self._runner(self._source.spec)) as before:
            images = Reading(before.model.transform, self._options.limits, wanted.max_bytes)
            stage(_DOING[wanted.method])
            used = self._write(folder, before, images)
            stage("loading what was written")
            made = catalog.find(str(folder))
            with closing(self._runner(made)) as after:
                return self._compared(before, after, made, images, used)

    def _runner(self, spec: ModelSpec) -> Runner:
        return Runner(replace(self._options, models=(spec,)), batch_size=self._wanted.batch_size)

    def _write(self, folder: Path, before: Runner, images: Reading) -> int:
        """The new folder by the method; how many images it has used."""
        wanted, source, name = self._wanted, self._source, self._wanted.output.resolve().name
        match wanted.method:
            case "prune":
                return methods.prune(source, folder, name, ratio=wanted.ratio, images=self._files, reading=images)
            case "int8":
                return methods.int8(source, before.model, folder, name, images=self._files)
            case "bf16":
                methods.bf16(source, folder, name)
                return 0

    def _compared(self, before: Runner, after: Runner, made: ModelSpec, images: Reading, used: int) -> Report:
        wanted = self._wanted
        self._watching.stage("comparing answers")
        truth = truth_of(self._files, wanted.images, before.model.labels)
        tally, left_out, pixels = self._tallied(before, after, images, truth)
        agreement, accuracies = tally.agreement(), tally.accuracies()
        self._watching.stage("timing both")
        rates = speed.race((before, after), pixels, wanted.rounds)
        old, new = map(_side, (self._source.spec, made), (before, after), rates, accuracies)
        return Report(
            source=wanted.model,
            name=wanted.output.resolve().name,
            method=wanted.method,
            ratio=wanted.ratio if wanted.method == "prune" else None,
            used_images=used,
            left_out=left_out,
            agreement=agreement,
            before=old,
            after=new,
            batch_size=len(pixels),
            rounds=wanted.rounds,
            remarks=tuple(_remarks(wanted.method, used, told=truth is not None)),
            versions=_versions(),
            made_at=datetime.now(UTC).isoformat(timespec="seconds"),
            command=wanted.command,
        )

    def _tallied(
        self, before: Runner, after: Runner, images: Reading, truth: Truth | None
    ) -> tuple[Tally, int, torch.Tensor]:
        """What both answer to all images, how many of the files are none, and the largest batch there was."""
        tally, done, left_out, largest = Tally(truth), 0, 0, torch.empty(0)
        classes = len(before.model.labels)
        wanted = self._wanted
        for batch in reading.batches(self._files, images, batch_size=wanted.batch_size, workers=wanted.workers):
            left_out += len(batch.faults)
            paths = [path for place, path in enumerate(batch.paths) if place not in batch.faults]
            answers = (runner.answer(batch.pixels, top_k=classes) for runner in (before, after))
            for path, old, new in zip(paths, *answers, strict=True):
                tally.add(path, _answered(old), _answered(new))
            if len(batch.pixels) > len(largest):
                largest = batch.pixels
            done += len(batch.paths)
            self._watching.compared(done, len(self._files))
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


def _remarks(method: Method, used: int, *, told: bool) -> Iterator[str]:
    if method == "prune":
        yield "Nothing was trained after pruning: fine-tune what is left, then judge it again."
    if used:
        yield f"{used} of the images that are compared were used to make it, which flatters it a little."
    if not told:
        yield "There is no accuracy: it needs a folder for each class, named as its label, below the images'."


def _versions() -> Mapping[str, str]:
    found: dict[str, str] = {}
    for package in _PACKAGES:
        with suppress(PackageNotFoundError):
            found[package] = version(package)
    return found


@contextmanager
def _unfinished(output: Path) -> Iterator[Path]:
    """A folder beside `output`, gone at the end unless it has been moved there."""
    folder = Path(tempfile.mkdtemp(prefix=f".{output.name}.", dir=output.parent))
    try:
        # As a folder that is made in no hurry, not for its owner alone.
        folder.chmod(0o777 & ~_umask())
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
