"""Every threat of docs/security.md names tests, and these exist."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs/security.md").read_text()
THREATS = PAGE.split("## Threats\n")[1].split("\n## ")[0].split("\n- ")[1:]
NAMED = re.findall(r"`(tests/[^`:]+)(?:::([^`]+))?`", PAGE)


@pytest.mark.parametrize(("file", "name"), NAMED)
def test_each_test_that_the_page_names_exists(file: str, name: str) -> None:
    defined = {
        node.name
        for node in ast.walk(ast.parse((ROOT / file).read_text()))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    }
    assert name in defined if name else any(each.startswith("test_") for each in defined)


def test_each_threat_has_a_test_or_holds_by_construction() -> None:
    assert len(THREATS) > 40
    assert [threat for threat in THREATS if "`tests/" not in threat and "by construction" not in threat] == []
