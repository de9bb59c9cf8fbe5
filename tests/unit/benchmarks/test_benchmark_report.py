"""The benchmark's page: ratios within a round, every bar, missed ones too."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks import machine, report
from benchmarks.measurement import Measurement, Store
from benchmarks.plan import Plan
from benchmarks.servers import MODELS, SERVERS, chosen
from benchmarks.statistic import steady_rate

MODEL = "efficientnet_lite0"
OWN = "gradless openvino fp32"


def measured(server: str, rates: list[float], **fields: Any) -> list[Measurement]:
    """Return one measurement for each round, by default in a closed loop of 32 connections."""
    fields = {"kind": "closed", "model": MODEL, "load": 32.0, **fields}
    if fields["kind"] == "closed":
        fields.setdefault("latency_ms", {"p50": 10.0, "p90": 15.0, "p99": 17.0, "mean": 11.0, "max": 20.0})
    return [
        Measurement(server=server, round=number, images_per_second=rate, **fields)
        for number, rate in enumerate(rates, start=1)
    ]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    description = {
        "date": "2026-01-01",
        "command": "python -m benchmarks",
        "processor": "a processor",
        "cores": 2,
        "memory_gib": 4,
        "system": "Linux",
        "python": "3.13",
        "versions": {},
        "wrk": "4",
        "load_average_before": 0.0,
        "settings": {"pictures": "drawn, 40 of them"},
    }
    machine.save(tmp_path / report.MACHINE, description)
    return tmp_path


def rows(folder: Path, measurements: list[Measurement]) -> dict[str, list[str]]:
    """The page's table rows by their first cell; of equal ones the first."""
    page = report.write(folder, measurements, {}).read_text(encoding="utf-8")
    found: dict[str, list[str]] = {}
    for line in page.splitlines():
        if line.startswith("|"):
            first, *others = [cell.strip() for cell in line.strip("|").split("|")]
            found.setdefault(first, others)
    return found


AGAINST_PEERS = "images/s at 32 connections over those of the best other server"


def test_a_bar_is_judged_by_the_median_of_ratios_of_the_same_round(folder: Path) -> None:
    # Medians over all rounds would give 100 / 30.
    kept = measured(OWN, [100, 80, 120]) + measured("mosec", [25, 40, 30]) + measured("LitServe", [20, 20, 20])
    found = rows(folder, kept)[AGAINST_PEERS]
    assert found == ["≥ 3.5", "4.00 (2.00–4.00)", "held"]  # noqa: RUF001 - a range
    assert "is mosec." in (folder / report.PAGE).read_text(encoding="utf-8")


def test_alternating_measurements_are_compared_turn_by_turn(folder: Path) -> None:
    kept = [
        # The machine becomes slower from turn to turn: medians over the round would give 1.00.
        *measured(OWN, [90, 60], turn=1),
        *measured(OWN, [80, 50], turn=2),
        *measured("decode + forward, openvino fp32", [100, 80], kind="ceiling", load=0.0, turn=1),
        *measured("decode + forward, openvino fp32", [160], kind="ceiling", load=0.0, turn=2),
    ]
    found = rows(folder, kept)["images/s at 32 connections over decode and forward in process"]
    assert found == ["≥ 0.92", "0.75 (0.50–0.90)", "**missed**"]  # noqa: RUF001 - a range


def test_missed_bars_are_shown_as_missed_and_others_as_not_measured(folder: Path) -> None:
    found = rows(folder, measured(OWN, [100]) + measured("mosec", [50]))
    assert found[AGAINST_PEERS][1:] == ["2.00", "**missed**"]
    assert found["later starts to ready"][1:] == ["", "not measured"]


def test_peers_with_the_engine_of_gradless_do_not_count_as_other_servers(folder: Path) -> None:
    kept = measured(OWN, [100]) + measured("mosec", [25]) + measured("mosec + gradless's eager", [90])
    assert rows(folder, kept)[AGAINST_PEERS][1] == "4.00"


def test_each_gradless_configuration_is_compared_with_its_own_ceilings(folder: Path) -> None:
    alone = {"p50": 8.0, "p90": 9.0, "p99": 9.0, "mean": 8.0, "max": 9.0}
    refusals = {"p50": 2.0, "p90": 3.0, "p99": 4.0, "mean": 2.0, "max": 5.0}
    kept = [
        *measured(OWN, [90]),
        *measured(OWN, [80], load=1.0),
        *measured(OWN, [99], load=128.0),
        *measured("decode + forward, openvino fp32", [100], kind="ceiling", load=0.0),
        *measured("decode + forward, eager fp32", [10], kind="ceiling", load=0.0),
        *measured("one image at a time, openvino fp32", [125], kind="ceiling", load=0.0, latency_ms=alone),
        *measured(
            OWN,
            [95],
            kind="overload",
            load=120.0,
            offered_per_second=120.0,
            latency_ms=alone,
            refusal_latency_ms=refusals,
        ),
    ]
    found = rows(folder, kept)
    assert found["openvino fp32"] == ["0.90", "1.25", "1.70", "1.10", "0.95", "2.00", "4.00"]
    assert found["p99 of the latency of refusals then"][1:] == ["4.00", "held"]
    assert found["p99 over p50 at 32 connections"][1:] == ["1.70", "**missed**"]


def test_the_server_itself_is_measured_against_decoding_alone(folder: Path) -> None:
    kept = [
        *measured("gradless null", [850, 800], model="null"),
        *measured("decode", [1000, 1000], kind="ceiling", model="null", load=0.0),
        # Of another model's round: not the one it is compared with.
        *measured("decode", [5000, 5000], kind="ceiling", load=0.0),
    ]
    found = rows(folder, kept)["the same with the null model, over decoding in process"]
    assert found == ["≥ 0.80", "0.82 (0.80–0.85)", "held"]  # noqa: RUF001 - a range


def test_a_large_jpeg_is_held_to_a_sixth_of_pillows_time(folder: Path) -> None:
    kept = [
        *measured("gradless", [0], kind="preprocessing", load=0.0, size="12 MP", figures={"cpu_ms": 15.0}),
        *measured("Pillow", [0], kind="preprocessing", load=0.0, size="12 MP", figures={"cpu_ms": 100.0}),
        *measured("gradless", [0], kind="preprocessing", load=0.0, size="3 MP", figures={"cpu_ms": 40.0}),
        *measured("Pillow", [0], kind="preprocessing", load=0.0, size="3 MP", figures={"cpu_ms": 50.0}),
    ]
    found = rows(folder, kept)
    assert found["CPU time to decode and resize a JPEG of 12 MP, over Pillow's"][1:] == ["0.15", "held"]
    assert found["3 MP"] == ["40.0", "50.0", "0.80"]


def test_starts_are_judged_and_listed(folder: Path) -> None:
    found = rows(folder, measured("gradless", [0], kind="start", load=0.0, figures={"first_s": 12.0, "later_s": 5.0}))
    assert found["first start to ready, with an empty cache"][-1] == "held"
    assert found["first start"] == ["12.0"]


def test_agreement_reports_pictures_and_counts(folder: Path) -> None:
    figures = {"images": 50.0, "agreeing": 49.0, "largest_difference": 0.03}
    kept = measured("openvino bf16", [0], kind="agreement", load=0.0, figures=figures)
    assert rows(folder, kept)["openvino bf16"] == ["49 of 50", "98.0 %", "0.03"]
    assert "does not know the drawn pictures" in (folder / report.PAGE).read_text(encoding="utf-8")


def test_measurements_kept_before_a_field_was_added_are_still_read(tmp_path: Path) -> None:
    path = tmp_path / report.MEASUREMENTS
    line = {"kind": "closed", "server": OWN, "model": MODEL, "round": 1, "load": 32.0, "images_per_second": 104.5}
    path.write_text(json.dumps(line) + "\n", encoding="utf-8")
    [kept] = Store(path).read()
    assert (kept.images_per_second, dict(kept.figures)) == (104.5, {})


def test_a_rate_is_measured_from_batch_to_batch() -> None:
    # A batch of four every second: four a second, though five or three batches may lie between the edges.
    moments = [float(second) for second in range(10) for _ in range(4)]
    assert steady_rate(moments, 1.9, 6.1) == pytest.approx(4)
    assert steady_rate(moments, 2.1, 5.9) == pytest.approx(4)
    assert steady_rate([], 0, 1) == 0
    assert steady_rate([3.0], 0, 1) == 0


def test_a_second_model_is_measured_in_brief_and_the_null_model_by_servers_without_an_engine(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # Whether Triton is installed here or not.
    monkeypatch.setattr(Path, "exists", lambda _path: False)
    plan = Plan(servers=tuple(chosen(["default"])), models=MODELS, rounds=3, seconds=2.0)
    first, second = MODELS
    alone, worker_server, *peers = plan.servers_of("null")
    assert (alone.name, worker_server.name) == ("gradless null", "gradless null, 2 workers")
    assert all(peer.engine == "gradless's null fp32" for peer in peers)
    # In process there is no read stage.
    assert plan.with_ceilings(alone, "null")
    assert not plan.with_ceilings(worker_server, "null")
    assert len(plan.servers_of(second)) < len(plan.servers_of(first))
    assert plan.connections_of(second, 1) == (32,)
    # Only what the bars compare, several times.
    assert plan.turns_of(SERVERS[OWN], first) == plan.turns_of(alone, "null") > 1
    assert plan.connections_of(first, 2) == (1, 32, 128)
    assert {plan.turns_of(spec, second) for spec in plan.servers_of(second)} == {1}
    assert not plan.open_loads(SERVERS[OWN], second)
    assert plan.expected_minutes() < 45
