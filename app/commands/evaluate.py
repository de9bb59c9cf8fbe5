"""`gradless evaluate`: accuracy of a model on labelled images."""

from __future__ import annotations

import json as json_format
from contextlib import closing
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from app.commands.conventions import (
    FAILED,
    INTERRUPTED,
    STDOUT,
    UNREADABLE,
    BatchSize,
    Json,
    Model,
    Strict,
    Workers,
    end,
    failures_reported,
    note,
    settings_for,
    workers_for,
    write_report,
)

if TYPE_CHECKING:
    from models.offline.evaluation import Evaluation, EvaluationJob


def evaluate(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="a folder for each class, named by label or index")],
    *,
    labels: Annotated[
        Path | None, typer.Option(metavar="FILE", help="list of path and label instead: .csv, or with a tab or space")
    ] = None,
    ignore_unknown: Annotated[
        bool, typer.Option("--ignore-unknown", help="skip images whose label is no class of the model")
    ] = False,
    json: Json = None,
    html: Annotated[Path | None, typer.Option(help="file for the report as a page, with the worst mistakes")] = None,
    model: Model = None,
    batch_size: BatchSize = 32,
    workers: Workers = None,
    strict: Strict = False,
) -> None:
    """Measure a model's accuracy on labelled images: top-1 and top-5, by class, confusions and calibration.

    Calibration error: images are grouped into 15 bins of equal width by the probability of their top class. It is the
    mean over images of the difference between a bin's mean probability and its accuracy.

    Exit status: 0 done; 1 some files could not be read, with --strict; 2 failed; 130 interrupted, after a report on the
    images done until then.
    """
    # Not above: importing torch takes seconds.
    from app.main import serving_options  # noqa: PLC0415
    from app.reports.pages import evaluation_page  # noqa: PLC0415
    from models.offline.evaluation import EvaluationJob  # noqa: PLC0415

    settings = settings_for(model)
    options = serving_options(settings)
    with failures_reported(str(folder)):
        job = EvaluationJob(
            folder,
            labels,
            options,
            batch_size=batch_size,
            workers=lambda files: workers_for(files) if workers is None else workers,
            max_bytes=settings.max_image_bytes,
            ignore_unknown=ignore_unknown,
            report=note,
        )
        with closing(job):
            complete, evaluation = _evaluated(job)
            if evaluation.images:
                _report(evaluation, json, complete=complete)
            # No page of an interrupted run: it would not say that it is incomplete.
            if html is not None and evaluation.images and complete:
                write_report(html, evaluation_page(evaluation, options.limits, settings.max_image_bytes))
    if not complete:
        end(f"interrupted: these are the results of the first {evaluation.images} images", INTERRUPTED)
    if not evaluation.images:
        end("no file is an image that could be classified", FAILED)
    if evaluation.without_answer and strict:
        raise typer.Exit(UNREADABLE)


def _evaluated(job: EvaluationJob) -> tuple[bool, Evaluation]:
    """Return whether all images were answered, and the results."""
    from app.reports.progress import job_progress  # noqa: PLC0415 - as above

    with job_progress("evaluate", len(job.truth.classes)) as progress, closing(job.steps()) as steps:
        if job.truth.unknown:
            progress.say(
                f"gradless: skipped labels that are no class of the model: {', '.join(map(repr, job.truth.unknown))}"
            )
        try:
            for step in steps:
                for path, reason in step.faults:
                    progress.say(f"gradless: {path}: {reason}")
                progress.advance(step.files)
        except KeyboardInterrupt:
            return False, job.evaluation()
    return True, job.evaluation()


def _report(evaluation: Evaluation, json: Path | None, *, complete: bool) -> None:
    from app.reports.terminal import PatientConsole, show_evaluation  # noqa: PLC0415 - as above

    # JSON on stdout moves the report to stderr.
    show_evaluation(evaluation, PatientConsole(stderr=json == STDOUT, highlight=False))
    if json is not None:
        report = {"complete": complete, **asdict(evaluation)}
        write_report(json, json_format.dumps(report, indent=2, ensure_ascii=False) + "\n")
