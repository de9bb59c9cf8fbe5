"""docs/models.md has every key of model.toml, and the README's first steps with a model folder."""

from __future__ import annotations

import re
from pathlib import Path

from models.model_folder import description

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "models.md").read_text()
TABLES = {
    "transform": description.TRANSFORM_KEYS,
    "serve": description.SERVE_KEYS,
    "reference": description.REFERENCE_KEYS,
}


def rows() -> dict[str, str]:
    """Return each item of the list of keys, by its key."""
    section = PAGE.split("## model.toml\n")[1].split("\n#")[0]
    return dict(re.findall(r"^- `\[?(\w+)\]?`(.*?)(?=^- |\Z)", section, re.MULTILINE | re.DOTALL))


def test_every_key_has_a_row_and_every_row_a_key() -> None:
    assert rows().keys() == set(description.KEYS)


def test_every_key_of_a_table_is_in_its_row() -> None:
    for table, keys in TABLES.items():
        named = re.findall(r"`(\w+)`", rows()[table])
        assert [key for key in keys if key not in named] == [], table


def test_the_readme_and_the_page_have_the_same_first_steps() -> None:
    pages = ((ROOT / "README.md").read_text(), PAGE)
    blocks = [re.search(r"```sh\n(.*?)```", page.split("## Your own model\n")[1], re.DOTALL) for page in pages]
    first, second = (block.group(1) if block else "" for block in blocks)
    assert first == second != ""
