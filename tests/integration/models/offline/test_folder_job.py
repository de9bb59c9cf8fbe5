"""models/offline: a folder's images are answered as the service answers them, in their order, and never all at once."""

from __future__ import annotations

import csv
import json
import weakref
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from models.interface.errors import JobError
from models.interface.request import InferenceRequest
from models.networks.specs import Classifier, ModelSpec
from models.offline import files, job, reading, tables
from models.offline.job import FolderJob, JobRequest
from models.offline.parts import Parts
from models.offline.reading import Batch
from models.offline.rows import Rows, Task
from models.ray_data import stages
from models.ray_data.stages import RemoteJob
from models.serving.model_instance import ServingOptions
from models.serving.runtime import LocalRuntime


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Twelve pictures of different colours, the fifth of which is none."""
    found = tmp_path / "pictures"
    found.mkdir()
    for number in range(12):
        Image.new("RGB", (50, 40), (20 * number, 255 - 20 * number, 90)).save(found / f"{number:02}.png")
    (found / "04.png").write_text("no picture")
    return found


@pytest.fixture
def options(tiny: ModelSpec) -> ServingOptions:
    return ServingOptions(models=[tiny], backend="eager")


@pytest.fixture
def job_request(folder: Path, tmp_path: Path) -> JobRequest:
    return JobRequest(
        task="features",
        files=files.find([folder]),
        output=tmp_path / "out.parquet",
        top_k=0,
        batch_size=4,
        workers=0,
        max_bytes=2**20,
    )


def done(job_request: JobRequest, options: ServingOptions) -> int:
    """How many files had no answer."""
    with closing(FolderJob(job_request, options)) as work:
        for _ in work.steps():
            pass
        return work.finish()


@pytest.mark.anyio
async def test_answers_equal_the_servers_in_the_order_of_the_files(
    job_request: JobRequest, options: ServingOptions, serving: LocalRuntime
) -> None:
    assert done(job_request, options) == 1
    assert (
        done(replace(job_request, task="classify", top_k=3, output=job_request.output.with_name("c.parquet")), options)
        == 1
    )
    readable = [file for file in job_request.files if not file.endswith("04.png")]
    images = [Path(file).read_bytes() for file in readable]  # noqa: ASYNC240 - nothing else runs on this loop
    answer = await serving.predict(None, InferenceRequest("classify", images, top_k=3))

    vectors = pq.read_table(job_request.output).to_pydict()
    classes = pq.read_table(job_request.output.with_name("c.parquet")).to_pydict()

    assert vectors["path"] == classes["path"] == readable
    assert set(vectors["fingerprint"]) == set(classes["fingerprint"]) == {answer.fingerprint}
    np.testing.assert_allclose(vectors["features"], [result.features for result in answer.results], rtol=1e-5)
    for rank in range(3):
        served = [result.classes[rank] for result in answer.results]
        assert classes[f"label_{rank + 1}"] == [scored.label for scored in served]
        assert classes[f"index_{rank + 1}"] == [scored.index for scored in served]
        np.testing.assert_allclose(
            classes[f"probability_{rank + 1}"], [scored.probability for scored in served], rtol=1e-5
        )


def test_the_table_names_its_model_and_has_vectors_of_one_length(
    job_request: JobRequest, options: ServingOptions
) -> None:
    done(job_request, options)
    schema = pq.read_schema(job_request.output)
    assert schema.names == ["path", "fingerprint", "features"]
    assert str(schema.field("features").type) == "fixed_size_list<element: float>[16]"
    assert schema.metadata[b"gradless.model"] == b"tiny"
    assert len(schema.metadata[b"gradless.fingerprint"]) == 16


def test_of_several_devices_a_job_uses_the_first(job_request: JobRequest, options: ServingOptions) -> None:
    assert done(job_request, replace(options, device="cpu:0, cpu")) == 1


def test_a_broken_file_is_listed_with_its_reason(job_request: JobRequest, options: ServingOptions) -> None:
    with closing(FolderJob(job_request, options)) as work:
        listed_errors = [fault for step in work.steps() for fault in step.faults]
        work.finish()
    listed = [
        json.loads(line) for line in job_request.output.with_name("out.parquet.errors.jsonl").read_text().splitlines()
    ]
    assert [(line["path"], line["error"]) for line in listed] == listed_errors
    assert listed_errors[0][0].endswith("04.png")
    assert "not an image of a format read here" in listed_errors[0][1]


def test_missing_and_oversized_files_are_listed(job_request: JobRequest, options: ServingOptions) -> None:
    Path(job_request.files[0]).unlink()
    Path(job_request.files[1]).write_bytes(b"x" * (job_request.max_bytes + 1))
    assert done(job_request, options) == 3
    listed_errors = job_request.output.with_name("out.parquet.errors.jsonl").read_text()
    assert "The file cannot be read: No such file or directory." in listed_errors
    assert f"larger than {job_request.max_bytes} bytes" in listed_errors


def test_without_errors_an_old_list_of_errors_is_deleted(job_request: JobRequest, options: ServingOptions) -> None:
    done(job_request, options)
    assert done(replace(job_request, files=job_request.files[:4]), options) == 0
    assert not job_request.output.with_name("out.parquet.errors.jsonl").exists()


def test_outputs_with_different_suffixes_have_separate_lists_of_errors(
    job_request: JobRequest, options: ServingOptions
) -> None:
    of_classes = replace(job_request, task="classify", top_k=2)
    done(replace(of_classes, output=job_request.output.with_name("out.csv")), options)
    listed = job_request.output.with_name("out.csv.errors.jsonl").read_text()
    assert done(replace(of_classes, files=job_request.files[:4]), options) == 0
    assert job_request.output.with_name("out.csv.errors.jsonl").read_text() == listed


def test_a_folder_of_broken_files_gives_an_empty_table(job_request: JobRequest, options: ServingOptions) -> None:
    assert done(replace(job_request, files=[job_request.files[4]]), options) == 1
    assert pq.read_table(job_request.output).num_rows == 0


def test_every_format_has_the_same_rows(job_request: JobRequest, options: ServingOptions) -> None:
    of_classes = replace(job_request, task="classify", top_k=2)
    for task, suffixes in ((job_request, (".parquet", ".npy")), (of_classes, (".parquet", ".csv", ".jsonl"))):
        for suffix in suffixes:
            done(replace(task, output=job_request.output.with_name(task.task + suffix)), options)
    folder = job_request.output.parent

    vectors = pq.read_table(folder / "features.parquet").to_pydict()
    assert np.load(folder / "features.npy").tolist() == vectors["features"]
    lines = [json.loads(line) for line in (folder / "features.npy.paths.jsonl").read_text().splitlines()]
    assert [(line["path"], line["fingerprint"]) for line in lines] == list(
        zip(vectors["path"], vectors["fingerprint"], strict=True)
    )

    classes = pq.read_table(folder / "classify.parquet").to_pylist()
    assert [json.loads(line) for line in (folder / "classify.jsonl").read_text().splitlines()] == classes
    with (folder / "classify.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["path"], row["label_2"], int(row["index_2"])) for row in rows] == [
        (row["path"], row["label_2"], row["index_2"]) for row in classes
    ]
    assert [np.float32(row["probability_1"]) for row in rows] == [np.float32(row["probability_1"]) for row in classes]


def test_a_model_without_classes_cannot_classify(job_request: JobRequest, tiny: ModelSpec) -> None:
    def build() -> Classifier:
        classifier = tiny.build()
        return replace(classifier, module=classifier.module[:-1], labels=())  # type: ignore[index]

    options = ServingOptions(models=[replace(tiny, build=build)], backend="eager")
    of_classes = replace(job_request, task="classify", top_k=3)
    with pytest.raises(JobError, match="tiny has no classes; use `gradless features`"):
        FolderJob(of_classes, options)
    # As each machine of a cluster has it.
    with pytest.raises(JobError, match="tiny has no classes; use `gradless features`"):
        stages.describe(RemoteJob("classify", 3, 4, job_request.max_bytes, options))
    assert not list(job_request.output.parent.glob("out.parquet*"))
    assert done(job_request, options) == 1


@pytest.mark.parametrize("suffix", [".parquet", ".npy"])
@pytest.mark.parametrize("part_files", [4, 100])
def test_a_resumed_run_writes_the_same_bytes(
    job_request: JobRequest, options: ServingOptions, monkeypatch: pytest.MonkeyPatch, suffix: str, part_files: int
) -> None:
    whole, stopped = (
        replace(job_request, output=job_request.output.with_name(name + suffix)) for name in ("whole", "stopped")
    )
    done(whole, options)
    monkeypatch.setattr(job, "_PART_FILES", part_files)
    with closing(FolderJob(stopped, options)) as work, closing(work.steps()) as steps:
        next(steps)
        next(steps)
    assert not stopped.output.exists()
    with closing(FolderJob(replace(stopped, resume=True), options)) as work:
        assert work.done == 8
        assert sum(step.files for step in work.steps()) == 4
        assert work.finish() == 1
    assert stopped.output.read_bytes() == whole.output.read_bytes()
    assert list(job_request.output.parent.glob("*.parts")) == []


def test_a_finished_job_runs_again_only_if_output_or_options_changed(
    job_request: JobRequest, options: ServingOptions
) -> None:
    def files_done(resumed: JobRequest) -> tuple[int, int]:
        with closing(FolderJob(replace(resumed, resume=True), options)) as work:
            return sum(step.files for step in work.steps()), work.finish()

    done(job_request, options)
    written = job_request.output.stat().st_mtime_ns
    assert files_done(job_request) == (0, 1)
    assert job_request.output.stat().st_mtime_ns == written
    assert not list(job_request.output.parent.glob("*.parts"))

    assert files_done(replace(job_request, max_bytes=2**19)) == (12, 1)
    assert files_done(job_request) == (12, 1)
    job_request.output.write_text("another program's")
    assert files_done(job_request) == (12, 1)
    job_request.output.unlink()
    assert files_done(job_request) == (12, 1)
    Image.new("RGB", (50, 40)).save(job_request.files[4])
    assert files_done(job_request) == (12, 0)


def test_only_a_few_batches_are_in_memory(
    job_request: JobRequest, options: ServingOptions, monkeypatch: pytest.MonkeyPatch
) -> None:
    alive: weakref.WeakSet[object] = weakref.WeakSet()
    most = 0
    made = Batch.of

    def counted(images: object, side: int) -> Batch:
        nonlocal most
        batch = made(images, side)  # type: ignore[arg-type]
        alive.add(batch.pixels)
        most = max(most, len(alive))
        return batch

    monkeypatch.setattr(reading.Batch, "of", counted)
    done(replace(job_request, files=job_request.files * 20, batch_size=2), options)
    assert most <= 2


def test_parts_and_row_groups_are_bounded_in_bytes(
    job_request: JobRequest, options: ServingOptions, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept: list[int] = []
    add = Parts.add

    def counted(parts: Parts, start: int, rows: Rows) -> None:
        kept.append(len(rows))
        add(parts, start, rows)

    row_bytes = 16 * 4
    monkeypatch.setattr(Parts, "add", counted)
    monkeypatch.setattr(job, "_PART_BYTES", 4 * row_bytes)
    monkeypatch.setattr(tables, "_GROUP_BYTES", 5 * row_bytes)
    done(job_request, options)
    written = pq.ParquetFile(job_request.output)
    assert kept == [4, 4, 4]
    assert [written.metadata.row_group(group).num_rows for group in range(written.num_row_groups)] == [5, 5, 1]


def test_worker_processes_give_the_same_answers(job_request: JobRequest, options: ServingOptions) -> None:
    done(job_request, options)
    alone = job_request.output.read_bytes()
    done(replace(job_request, workers=2), options)
    assert job_request.output.read_bytes() == alone


@pytest.mark.parametrize(
    ("task", "name", "message"),
    [
        ("features", "out.csv", r"must be one of \.parquet or \.npy"),
        ("classify", "out.txt", r"must be one of \.parquet, \.csv or \.jsonl"),
        ("features", "pictures.parquet", "is a folder"),
    ],
)
def test_an_invalid_output_is_refused_before_loading(
    job_request: JobRequest, options: ServingOptions, task: Task, name: str, message: str
) -> None:
    (job_request.output.parent / "pictures.parquet").mkdir()
    with pytest.raises(JobError, match=message):
        FolderJob(replace(job_request, task=task, output=job_request.output.with_name(name)), options)


@pytest.mark.parametrize("suffix", [".parquet", ".npy"])
def test_a_resumed_run_redoes_the_batches_of_changed_files_alone(
    job_request: JobRequest, options: ServingOptions, suffix: str
) -> None:
    stopped, whole = (
        replace(job_request, output=job_request.output.with_name(name + suffix)) for name in ("stopped", "whole")
    )
    with closing(FolderJob(stopped, options)) as work, closing(work.steps()) as steps:
        next(steps)
        next(steps)
    # In the second batch, the one that was no image; and one that has not been read.
    Image.new("RGB", (50, 40), (9, 8, 7)).save(job_request.files[4])
    Path(job_request.files[11]).write_text("no picture")

    with closing(FolderJob(replace(stopped, resume=True), options)) as work:
        assert (work.changed, work.done) == (1, 4)
        assert sum(step.files for step in work.steps()) == 8
        assert work.finish() == 1

    assert done(whole, options) == 1
    assert stopped.output.read_bytes() == whole.output.read_bytes()
    assert "11.png" in stopped.output.with_name(f"stopped{suffix}.errors.jsonl").read_text()


def test_a_run_with_other_files_is_not_resumed(job_request: JobRequest, options: ServingOptions) -> None:
    with closing(FolderJob(job_request, options)) as work, closing(work.steps()) as steps:
        next(steps)
    with pytest.raises(JobError, match="was started with files 12, but this run has 11"):
        FolderJob(replace(job_request, files=job_request.files[1:], resume=True), options)
