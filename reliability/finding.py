"""Results of scenarios: bars, and what was measured against them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from rich.console import Console
from rich.table import Table


@dataclass(frozen=True, slots=True)
class Finding:
    """One bar of a scenario."""

    scenario: str
    load: str
    bar: str
    measured: str
    met: bool


@dataclass(frozen=True, slots=True)
class Scenario:
    """A name and a load that its findings share."""

    name: str
    load: str

    def finding(self, bar: str, measured: str, *, met: bool) -> Finding:
        """Return a finding of this scenario."""
        return Finding(self.name, self.load, bar, measured, met)


def show(findings: Sequence[Finding]) -> None:
    """Print a table to stdout."""
    table = Table("scenario", "bar", "measured", "met")
    for finding in findings:
        table.add_row(finding.scenario, finding.bar, finding.measured, "yes" if finding.met else "[bold]MISSED[/bold]")
    Console(width=160).print(table)
