"""What docs/security.md claims, a test shows: each that it names is there."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
NAMED = re.findall(r"`(tests/[\w/]+\.py)(?:::(\w+))?`", (ROOT / "docs/security.md").read_text())


@pytest.mark.parametrize(("file", "name"), NAMED)
def test_each_test_that_the_threat_table_names_is_there(file: str, name: str) -> None:
    defined = {
        node.name
        for node in ast.walk(ast.parse((ROOT / file).read_text()))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    }
    assert name in defined if name else any(each.startswith("test_") for each in defined)


def test_the_threat_table_names_tests() -> None:
    assert len(NAMED) > 20
