"""Measure, store and report: `python -m benchmarks`, in the environment that `make bench` sets up."""

from __future__ import annotations

import argparse
import logging
import sys
import tempfile
from pathlib import Path

from benchmarks import machine, pictures, plots, report
from benchmarks.bench import ROOT, Bench
from benchmarks.load import require_wrk
from benchmarks.measurement import Measurement, Store
from benchmarks.plan import CONNECTIONS, LOADS_PERCENT, TURNS, Plan
from benchmarks.rounds import measure
from benchmarks.servers import MODELS, chosen

_log = logging.getLogger("benchmarks")

_RESULTS = Path("benchmarks/results")
_QUICK_RESULTS = Path("build/bench-quick")


def main() -> None:
    """The command line."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    options = _parser().parse_args()
    folder: Path = options.out or (_QUICK_RESULTS if options.quick else _RESULTS)
    if not options.report_only:
        try:
            require_wrk()
            plan = _plan(options)
            folder.mkdir(parents=True, exist_ok=True)
            _measure(plan, options, folder)
        except (ValueError, RuntimeError) as error:
            sys.exit(f"benchmarks: {error}")
    measurements = Store(folder / report.MEASUREMENTS).read()
    if not measurements:
        sys.exit(f"benchmarks: no measurements in {folder}")
    figures = {model: plots.draw_all(measurements, model, folder) for model in report.models_of(measurements)}
    _log.info("written: %s", report.write(folder, measurements, figures))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description="compare gradless with other servers")
    parser.add_argument("--images", type=Path, help="folder of JPEG files to send; without it, drawn pictures")
    parser.add_argument("--servers", nargs="+", default=["default"], help="parts of names; also: default, all")
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=2.0, help="of one measurement, at least")
    parser.add_argument("--quick", action="store_true", help="one short round at 32 connections, as a trial")
    parser.add_argument("--out", type=Path, help=f"folder for results (default {_RESULTS}; quick: {_QUICK_RESULTS})")
    parser.add_argument(
        "--python", type=Path, default=ROOT / ".venv/bin/python", help="interpreter of gradless's environment"
    )
    parser.add_argument("--report-only", action="store_true", help="make page and figures from kept measurements")
    return parser


def _plan(options: argparse.Namespace) -> Plan:
    return Plan(
        servers=tuple(chosen(options.servers)),
        models=tuple(options.models),
        rounds=1 if options.quick else options.rounds,
        seconds=min(options.seconds, 2.0) if options.quick else options.seconds,
        connections=(32,) if options.quick else CONNECTIONS,
        loads_percent=(80,) if options.quick else LOADS_PERCENT,
        turns=1 if options.quick else TURNS,
        all_engines=not options.quick,
    )


def _measure(plan: Plan, options: argparse.Namespace, folder: Path) -> None:
    _log.info("about %.0f minutes: %s", plan.expected_minutes(), ", ".join(spec.name for spec in plan.servers))
    kept = folder / report.MEASUREMENTS
    kept.unlink(missing_ok=True)
    store = Store(kept)

    def keep(measurement: Measurement) -> None:
        store.add(measurement)
        _log.info("%s", _line(measurement))

    with tempfile.TemporaryDirectory(prefix="bench-pictures-") as drawn:
        files = pictures.draw_all(Path(drawn))
        source = f"drawn, {len(files['0.2 MP'])} of 500 x 375 pixels at quality {pictures.QUALITY}"
        if options.images:
            # Under the name of the usual size: the folder's pictures replace the drawn ones.
            files["0.2 MP"] = pictures.jpegs(options.images.resolve())
            source = f"{len(files['0.2 MP'])} files of a folder"
        settings = {"rounds": plan.rounds, "seconds": plan.seconds, "pictures": source}
        machine.save(folder / report.MACHINE, machine.describe(sys.argv[1:], settings))
        measure(plan, Bench(files, options.python, folder.resolve() / "logs"), keep)


def _line(measurement: Measurement) -> str:
    latency = measurement.latency_ms.get("p99")
    found = [f"{measurement.images_per_second:.1f}/s"] if measurement.images_per_second else []
    found += [f"p99 {latency:.0f} ms"] if latency is not None else []
    found += [f"{measurement.refused} without a 200"] if measurement.refused else []
    found += [f"{name} {value:.4g}" for name, value in measurement.figures.items()]
    subject = f"{measurement.model} {measurement.server} {measurement.kind} {measurement.load:g} {measurement.size}"
    return f"round {measurement.round} {subject}: {', '.join(found)}"


if __name__ == "__main__":
    main()
