"""docs/your-own-model.md has every key of model.toml, and the README's first steps with a model of one's own."""

from __future__ import annotations

import re
from pathlib import Path

from models.model_folder import description

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "your-own-model.md").read_text()
TABLES = {
    "transform": description.TRANSFORM_KEYS,
    "serve": description.SERVE_KEYS,
    "reference": description.REFERENCE_KEYS,
}


def rows() -> dict[str, str]:
    """Of the table of keys: what is said of each."""
    found = re.findall(r"^\| `\[?(\w+)\]?` \|(.*)\|$", PAGE, re.MULTILINE)
    return dict(found)


def test_every_key_has_a_row_and_every_row_a_key() -> None:
    assert rows().keys() == set(description.KEYS)


def test_every_key_of_a_table_is_in_its_row() -> None:
    for table, keys in TABLES.items():
        named = re.findall(r"`(\w+)`", rows()[table])
        assert [key for key in keys if key not in named] == [], table


def test_the_readme_and_the_page_begin_alike() -> None:
    readme = (ROOT / "README.md").read_text().split("### Your own\n")[1]
    blocks = [re.search(r"```sh\n(.*?)```", text, re.DOTALL) for text in (readme, PAGE)]
    first, second = (block.group(1) if block else "" for block in blocks)
    assert first == second != ""
