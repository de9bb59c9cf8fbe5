"""`gradless evaluate`: how good a model is on images of which somebody says what they show."""

from __future__ import annotations

import json as json_format
from contextlib import closing
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from app.commands.failing import FAILED, INTERRUPTED, UNREADABLE, end, failures_said, settings_for
from app.commands.folders import BatchSize, Model, Strict, Workers, workers_for

if TYPE_CHECKING:
    from models.offline.evaluating import Evaluation
    from models.offline.evaluation_job import EvaluationJob

_STDOUT = Path("-")


def evaluate(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="a folder for each class, named by label or index")],
    *,
    labels: Annotated[
        Path | None, typer.Option(metavar="FILE", help="lines of path and label instead: .csv, or with a tab or space")
    ] = None,
    ignore_unknown: Annotated[
        bool, typer.Option("--ignore-unknown", help="leave out images whose label is no class of the model")
    ] = False,
    json: Annotated[Path | None, typer.Option(help="file for the figures as JSON; - is stdout")] = None,
    html: Annotated[Path | None, typer.Option(help="file for a page with pictures of the worst mistakes")] = None,
    model: Model = None,
    batch_size: BatchSize = 32,
    workers: Workers = None,
    strict: Strict = False,
) -> None:
    """Say how often a model is right about labelled images: top-1 and top-5, by class, what it confuses, and how far
    its probabilities are to be believed.

    Calibration error: images are put into 15 bins of equal width by the probability of their first place; it is the
    mean over images of the difference between a bin's mean probability and its share of right answers.

    Exit status: 0 done; 1 some files could not be read, with --strict; 2 not done; 130 interrupted, what was done until
    then told.
    """
    # Here, not above: other commands need not wait for torch.
    from app.main import serving_options  # noqa: PLC0415
    from app.reports.evaluation_page import page  # noqa: PLC0415
    from models.offline.evaluation_job import EvaluationJob  # noqa: PLC0415

    settings = settings_for(model)
    options = serving_options(settings)
    try:
        with failures_said(str(folder)):
            job = EvaluationJob(
                folder,
                labels,
                options,
                batch_size=batch_size,
                workers=lambda files: workers_for(files) if workers is None else workers,
                max_bytes=settings.max_image_bytes,
                ignore_unknown=ignore_unknown,
            )
        with closing(job), failures_said(str(folder)):
            complete, evaluation = _evaluated(job)
            if evaluation.images:
                _tell(evaluation, json, complete=complete)
            # A page would be looked at as the whole of it, whatever a terminal has said.
            if html is not None and evaluation.images and complete:
                html.write_text(page(evaluation, options.limits), encoding="utf-8")
    except KeyboardInterrupt:
        raise typer.Exit(INTERRUPTED) from None
    if not complete:
        end(f"interrupted: this is of the first {evaluation.images} images", INTERRUPTED)
    if not evaluation.images:
        end("no file has a picture that could be answered", FAILED)
    if evaluation.without_answer and strict:
        raise typer.Exit(UNREADABLE)


def _evaluated(job: EvaluationJob) -> tuple[bool, Evaluation]:
    """Whether all was answered, and how well."""
    from app.reports.progress import job_progress  # noqa: PLC0415 - as above

    with job_progress("evaluate", len(job.truth.classes)) as progress, closing(job.steps()) as steps:
        if job.truth.unknown:
            progress.say(f"gradless: left out, no classes of the model: {', '.join(map(repr, job.truth.unknown))}")
        try:
            for step in steps:
                for path, reason in step.faults:
                    progress.say(f"gradless: {path}: {reason}")
                progress.advance(step.files)
        except KeyboardInterrupt:
            return False, job.evaluation()
    return True, job.evaluation()


def _tell(evaluation: Evaluation, json: Path | None, *, complete: bool) -> None:
    from app.reports.evaluation_terminal import show  # noqa: PLC0415 - as above
    from app.reports.terminal import PatientConsole  # noqa: PLC0415

    # Where stdout is for the JSON, people read the rest on stderr.
    show(evaluation, PatientConsole(stderr=json == _STDOUT, highlight=False))
    if json is not None:
        report = {"complete": complete, **asdict(evaluation)}
        text = json_format.dumps(report, indent=2, ensure_ascii=False) + "\n"
        if json == _STDOUT:
            typer.echo(text, nl=False)
        else:
            json.write_text(text, encoding="utf-8")
