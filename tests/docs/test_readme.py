"""What the README says is held to what the code does."""

from __future__ import annotations

import re
from pathlib import Path

from app.commands.settings_table import settings_table
from app.http import problems
from app.http.problems import TABLE, ClientDisconnectedError, Row

README = (Path(__file__).parents[2] / "README.md").read_text()


def test_the_readme_holds_the_table_of_settings_that_the_command_prints() -> None:
    held = README.split("<!-- settings -->\n")[1].split("\n<!-- /settings -->")[0]
    assert held == settings_table()


def test_the_readme_names_every_problem_type_at_its_status() -> None:
    # Those of the table, and those beside it that no exception stands for.
    rows = {row for row in vars(problems).values() if isinstance(row, Row)}
    rows |= {row for error, row in TABLE.items() if error is not ClientDisconnectedError}
    named = {
        (int(status), slug)
        for status, slugs in re.findall(r"^\| (\d{3}) \| (.*) \|$", README, re.MULTILINE)
        for slug in re.findall(r"`([a-z-]+)`", slugs)
    }
    assert named == {(row.status, row.slug) for row in rows}
