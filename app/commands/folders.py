"""`gradless classify` and `gradless features`: run a model on files instead of requests."""

from __future__ import annotations

from contextlib import closing
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from app.commands.conventions import (
    FAILED,
    UNREADABLE,
    BatchSize,
    Model,
    Strict,
    Workers,
    end,
    failures_reported,
    note,
    settings_for,
    workers_for,
)
from app.settings import Settings
from models.interface.extras import install_command, installed

if TYPE_CHECKING:
    from models.offline.job import FolderJob
    from models.ray_data.job import ClusterJob

Paths = Annotated[
    list[str], typer.Argument(metavar="PATH…", help="files, and folders to search recursively", show_default=False)
]
Resume = Annotated[bool, typer.Option("--resume", help="continue an interrupted run")]
Ray = Annotated[
    str | None,
    typer.Option(
        metavar="ADDRESS",
        help="run on a Ray cluster: auto, HOST:PORT, ray://HOST:PORT, or local for this machine; "
        "the output is then a folder of Parquet files, and paths may be URIs such as s3://BUCKET/FOLDER",
    ),
]
Task = Literal["classify", "features"]

# Formats that only a single process can write, and that need no extra.
_TABLES: dict[Task, tuple[str, ...]] = {"classify": (".csv", ".jsonl"), "features": (".npy",)}

# Files printed with their error; the others are only in the file of errors.
_MOST_PRINTED = 20


def classify(
    paths: Paths,
    output: Annotated[str, typer.Option("-o", "--output", help="file to write: .parquet, .csv or .jsonl")],
    *,
    top_k: Annotated[int, typer.Option(min=1, help="top classes per image")] = 5,
    model: Model = None,
    batch_size: BatchSize = 32,
    workers: Workers = None,
    ray: Ray = None,
    resume: Resume = False,
    strict: Strict = False,
) -> None:
    """Write the top classes of each image of files and folders into a table.

    Its columns are path, fingerprint, and label_1, index_1, probability_1, label_2 and so on, most probable first. Rows
    are in the order of the arguments, and within a folder by name. Unreadable files are printed and listed in
    OUTPUT.errors.jsonl.

    Exit status: 0 done; 1 some files could not be read, with --strict; 2 failed; 130 interrupted, continue with
    --resume.
    """
    options = {"task": "classify", "top_k": top_k, "batch_size": batch_size}
    _run(paths, output, model, workers, ray, options, resume=resume, strict=strict)


def features(
    paths: Paths,
    output: Annotated[str, typer.Option("-o", "--output", help="file to write: .parquet or .npy")],
    *,
    model: Model = None,
    batch_size: BatchSize = 32,
    workers: Workers = None,
    ray: Ray = None,
    resume: Resume = False,
    strict: Strict = False,
) -> None:
    """Write the feature vector of each image of files and folders into a table.

    Its columns are path, fingerprint, and features, a list of float32. With .npy the vectors are an array (N, D), and
    OUTPUT.paths.jsonl has path and fingerprint of each row. Rows are in the order of the arguments, and within a folder
    by name. Unreadable files are printed and listed in OUTPUT.errors.jsonl.

    Exit status: 0 done; 1 some files could not be read, with --strict; 2 failed; 130 interrupted, continue with
    --resume.
    """
    options = {"task": "features", "top_k": 0, "batch_size": batch_size}
    _run(paths, output, model, workers, ray, options, resume=resume, strict=strict)


def _run(
    paths: list[str],
    output: str,
    model: str | None,
    workers: int | None,
    ray: str | None,
    options: dict[str, Any],
    *,
    resume: bool,
    strict: bool,
) -> None:
    task: Task = options["task"]
    if output.endswith(".parquet") and not installed("pyarrow"):
        others = " or ".join(_TABLES[task])
        end(f"-o {output}: Parquet needs pyarrow, and {others} does not: {install_command('folders')}", FAILED)
    if ray is not None:
        _check_for_ray(output, workers)
    settings = settings_for(model)
    options = {**options, "max_bytes": settings.max_image_bytes}
    with failures_reported(output):
        opened = (
            _on_this_machine(paths, output, workers, settings, options, resume=resume)
            if ray is None
            else _on_cluster(ray, paths, output, settings, options, resume=resume)
        )
        with closing(opened) as job:
            faults = _run_job(job, task, output)
    if faults and strict:
        raise typer.Exit(UNREADABLE)


def _check_for_ray(output: str, workers: int | None) -> None:
    if not installed("ray"):
        end(f"--ray needs Ray: {install_command('ray')}", FAILED)
    if workers is not None:
        end("--workers are processes of this machine; on a cluster Ray uses all cores", FAILED)
    if output.endswith(tuple(chain.from_iterable(_TABLES.values()))):
        end(f"-o {output}: on a cluster the output is a folder of Parquet files", FAILED)


def _on_this_machine(
    paths: list[str], output: str, workers: int | None, settings: Settings, options: dict[str, Any], *, resume: bool
) -> FolderJob:
    # Not above: importing torch takes seconds.
    from app.main import serving_options  # noqa: PLC0415
    from models.offline import files  # noqa: PLC0415
    from models.offline.job import FolderJob, JobRequest  # noqa: PLC0415

    found = files.find([Path(path) for path in paths], note)
    workers = workers_for(len(found)) if workers is None else workers
    request = JobRequest(files=found, output=Path(output), workers=workers, resume=resume, **options)
    return FolderJob(request, serving_options(settings))


def _on_cluster(
    address: str, paths: list[str], output: str, settings: Settings, options: dict[str, Any], *, resume: bool
) -> ClusterJob:
    from app.main import serving_options  # noqa: PLC0415 - as above
    from app.ray_serve.serve import with_absolute_paths  # noqa: PLC0415
    from models.ray_data.job import ClusterJob  # noqa: PLC0415
    from models.ray_data.stages import RemoteJob  # noqa: PLC0415
    from models.ray_data.storage import find  # noqa: PLC0415

    job = RemoteJob(options=serving_options(with_absolute_paths(settings, Path.cwd())), **options)
    return ClusterJob(job, find(paths, note), output, address=address, resume=resume)


def _run_job(job: FolderJob | ClusterJob, task: str, output: str) -> int:
    """Run `job` to its end. Return the number of files without an answer."""
    from app.reports.progress import job_progress  # noqa: PLC0415 - as above

    files = job.files
    printed = 0
    if job.changed:
        note(f"{job.changed} file{'s' * (job.changed != 1)} changed since the last run, and will be done again")
    with job_progress(task, files, done=job.done) as progress:
        try:
            with closing(job.steps()) as steps:
                for step in steps:
                    for path, reason in step.faults:
                        printed += 1
                        if printed <= _MOST_PRINTED:
                            progress.say(f"gradless: {path}: {reason}")
                    progress.advance(step.files)
        except KeyboardInterrupt:
            progress.say(f"gradless: stopped after {job.done} of {files} files: continue with --resume")
            raise
        faults = job.finish()
        errors = f"; {faults} files without an answer are in {job.errors}" if faults else ""
        done = f"{files - faults} images in {output} by {job.model}"
        progress.say(f"gradless: {done}, {progress.per_second:.1f}/s{errors}")
    return faults
