"""Run every scenario, print and write the findings: `python -m reliability`.

The pages are reliability/results.md and docs/reliability.md. Ends with status 1 when a bar is missed.
"""

from __future__ import annotations

import argparse
import inspect
import shlex
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import psutil

from observe import ROOT
from reliability.finding import Finding, show
from reliability.page import results, summary
from reliability.scale import FULL_SECONDS, FULL_SIGTERMS, Scale
from reliability.scenarios import (
    costly,
    damaged_cache,
    decoder,
    fuzz,
    hang_up,
    killed_processes,
    log_failures,
    neighbours,
    overload,
    own_answers,
    protocol_fuzz,
    protocols,
    reloads,
    same_answer,
    sigkill,
    sigterm,
    slowloris,
    vanishing,
)

_SCENARIOS: dict[str, Callable[[Scale], Iterator[Finding]]] = {
    "overload": overload.measure,
    "slowloris": slowloris.measure,
    "hang-up": hang_up.measure,
    "vanishing": vanishing.measure,
    "fuzz": fuzz.measure,
    "protocol-fuzz": protocol_fuzz.measure,
    "decoder": decoder.measure,
    "costly": costly.measure,
    "sigterm": sigterm.measure,
    "sigterm-protocols": sigterm.measure_protocols,
    "sigkill": sigkill.measure,
    "killed-processes": killed_processes.measure,
    "damaged-cache": damaged_cache.measure,
    "log-failures": log_failures.measure,
    "neighbours": neighbours.measure,
    "reloads": reloads.measure,
    "own-answers": own_answers.measure,
    "protocols": protocols.measure,
    "protocols-overload": protocols.measure_overload,
    "same-answer": same_answer.measure,
}
_RESULTS = ROOT / "reliability" / "results.md"
_SUMMARY = ROOT / "docs" / "reliability.md"


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m reliability", description=__doc__)
    parser.add_argument("--only", choices=_SCENARIOS, help="one scenario; nothing is written")
    parser.add_argument(
        "--seconds",
        type=float,
        default=FULL_SECONDS,
        help=f"duration of the longest load, {FULL_SECONDS:g}; a smaller value shortens all",
    )
    parser.add_argument("--sigterms", type=int, help=f"number of SIGTERMs, {FULL_SIGTERMS} or its share")
    parser.add_argument("--out", type=Path, default=_RESULTS, help=f"results; {_SUMMARY.name} only gets the default's")
    options = parser.parse_args(arguments)
    whole = Scale(options.seconds)
    scale = Scale(options.seconds, options.sigterms or whole.count(FULL_SIGTERMS, least=3))
    given = sys.argv[1:] if arguments is None else arguments
    load_before = psutil.getloadavg()[0]
    findings = list(_found([options.only] if options.only else list(_SCENARIOS), scale))
    if not options.only:
        command = shlex.join(["python", "-m", "reliability", *given])
        options.out.write_text(results(findings, command, load_before), encoding="utf-8")
        if options.out == _RESULTS:
            _SUMMARY.write_text(summary(findings, about_scenarios()), encoding="utf-8")
    sys.exit(1 if any(not finding.met for finding in findings) else 0)


def about_scenarios() -> dict[str, str]:
    """Return the first line of each scenario's module, by the scenario's name."""
    return {
        name: (inspect.getdoc(sys.modules[measure.__module__]) or "").partition("\n")[0].removesuffix(".")
        for name, measure in _SCENARIOS.items()
    }


def _found(names: Sequence[str], scale: Scale) -> Iterator[Finding]:
    for name in names:
        findings = _findings(name, scale)
        show(findings)
        sys.stdout.flush()
        yield from findings


def _findings(name: str, scale: Scale) -> list[Finding]:
    """Return the findings of a scenario; an exception in it is a missed bar, and the others go on."""
    try:
        return list(_SCENARIOS[name](scale))
    except Exception as error:  # noqa: BLE001
        traceback.print_exc()
        message = str(error).partition("\n")[0]
        return [Finding(name, "", "the scenario runs to its end", f"{type(error).__name__}: {message}", met=False)]


if __name__ == "__main__":
    main()
