"""What the README says is held to what the code does."""

from __future__ import annotations

import re
from pathlib import Path

from app.problems import INTERNAL_ERROR, INVALID_PARAMETER, METHOD_NOT_ALLOWED, NOT_FOUND, TABLE, CallerGoneError
from app.settings_table import settings_table

README = (Path(__file__).parents[2] / "README.md").read_text()


def test_the_readme_holds_the_table_of_settings_that_the_command_prints() -> None:
    held = README.split("<!-- settings -->\n")[1].split("\n<!-- /settings -->")[0]
    assert held == settings_table()


def test_the_readme_names_every_problem_type_at_its_status() -> None:
    rows = {row for error, row in TABLE.items() if error is not CallerGoneError}
    rows |= {INVALID_PARAMETER, NOT_FOUND, METHOD_NOT_ALLOWED, INTERNAL_ERROR}
    named = {
        (int(status), slug)
        for status, slugs in re.findall(r"^\| (\d{3}) \| (.*) \|$", README, re.MULTILINE)
        for slug in re.findall(r"`([a-z-]+)`", slugs)
    }
    assert named == {(row.status, row.slug) for row in rows}
