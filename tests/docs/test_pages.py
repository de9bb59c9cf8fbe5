"""README.md and docs/ agree with the code: links, paths, commands, settings, metrics, problems, names, lengths."""

from __future__ import annotations

import json
import re
import shlex
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from typer.main import get_command

from app.cli import app
from app.commands.serve import settings_table
from app.http import problems
from app.http.problems import TABLE, ClientDisconnectedError, Row
from app.main import create_app
from app.settings import Settings
from models.interface.errors import UnsupportedFormatError

ROOT = Path(__file__).parents[2]
PAGES = {
    str(path.relative_to(ROOT)): path.read_text()
    for path in (ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md")))
}
# `make reliability` writes it.
WRITTEN = {name: text for name, text in PAGES.items() if name != "docs/reliability.md"}
FOLDERS = tuple(
    path.name
    for path in ROOT.iterdir()
    if path.is_dir() and not path.name.startswith(".") and path.name not in {"build", "dist"}
)
MOST_WORDS = {"README.md": 1500, "docs/architecture.md": 2500}


@pytest.mark.parametrize(("page", "most"), MOST_WORDS.items())
def test_a_page_with_a_limit_of_words_keeps_it(page: str, most: int) -> None:
    assert len(PAGES[page].split()) <= most


def test_the_readme_links_every_page() -> None:
    linked = set(re.findall(r"\]\((docs/[\w-]+\.md)\)", PAGES["README.md"]))
    assert linked == {page for page in PAGES if page.startswith("docs/")}


@pytest.mark.parametrize("page", PAGES)
def test_every_relative_link_leads_to_a_file_and_to_a_heading_of_it(page: str) -> None:
    targets = re.findall(r"\]\(([^)\s]+)\)", PAGES[page]) + re.findall(r'src="([^"]+)"', PAGES[page])
    relative = [target for target in targets if not re.match(r"[a-z]+:", target)]
    assert [target for target in relative if not _leads_somewhere(page, target)] == []


def _leads_somewhere(page: str, target: str) -> bool:
    file, _, heading = target.partition("#")
    path = (ROOT / page).parent / file if file else ROOT / page
    return path.exists() and (not heading or heading in _anchors(path.read_text()))


def _anchors(text: str) -> set[str]:
    """Return the anchors that GitHub gives the headings."""
    headings = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", WRITTEN)
def test_every_path_of_the_repository_that_a_page_names_exists(page: str) -> None:
    named = {
        word
        for span in re.findall(r"`([^`\n]+)`", WRITTEN[page])
        for word in span.split()
        if word.startswith(tuple(f"{folder}/" for folder in FOLDERS))
    }
    assert [path for path in sorted(named) if not (ROOT / path.split("::")[0]).exists()] == []


@pytest.mark.parametrize("page", WRITTEN)
def test_every_class_that_a_page_names_is_defined(page: str) -> None:
    named = set(re.findall(r"`((?:[A-Z][a-z]+){2,})`", WRITTEN[page])) - {"DataLoader"}
    assert named <= set(re.findall(r"^ *class (\w+)", _sources(), re.MULTILINE))


@pytest.mark.parametrize("page", WRITTEN)
def test_every_member_of_a_class_that_a_page_names_is_defined(page: str) -> None:
    named = set(re.findall(r"`(?:[A-Z][a-z]+)+\.([a-z_]+)`", WRITTEN[page]))
    assert named <= set(re.findall(r"^ +(?:async )?(?:def )?(\w+)[(:]", _sources(), re.MULTILINE))


@cache
def _sources() -> str:
    files = [file for package in ("app", "gradless", "models") for file in (ROOT / package).rglob("*.py")]
    return "".join(file.read_text() for file in files)


@pytest.mark.parametrize("page", WRITTEN)
def test_every_gradless_command_of_a_page_exists_with_its_options(page: str) -> None:
    for words in _commands(WRITTEN[page], "gradless"):
        _check_command(words)


def _check_command(words: list[str]) -> None:
    command: Any = get_command(app)
    named = list(words)
    while named and named[0] in getattr(command, "commands", {}):
        command = command.commands[named.pop(0)]
    assert len(named) < len(words), words
    known = {"--help"} | {option for parameter in command.params for option in parameter.opts}
    assert {word for word in named if re.match(r"--?[a-z]", word)} <= known, words


@pytest.mark.parametrize("page", WRITTEN)
def test_every_make_target_and_module_of_a_page_exists(page: str) -> None:
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert {words[0] for words in _commands(WRITTEN[page], "make")} <= targets
    modules = {words[1] for words in _commands(WRITTEN[page], "python") if words[0] == "-m" and words[1] != "venv"}
    paths = [ROOT / module.replace(".", "/") for module in modules]
    missing = [path for path in paths if not path.with_suffix(".py").exists() and not (path / "__main__.py").exists()]
    assert missing == []


def _commands(text: str, program: str) -> list[list[str]]:
    """Return the arguments of each call of `program` in shell blocks and in code spans."""
    blocks = re.findall(r"```sh\n(.*?)```", text, re.DOTALL)
    lines = [line for block in blocks for line in block.splitlines()]
    lines += re.findall(r"`([^`]+)`", re.sub(r"```.*?```", "", text, flags=re.DOTALL))
    calls = []
    for line in lines:
        words = shlex.split(line, comments=True) if _is_shell(line) else []
        while words and re.match(r"[A-Z_]+=", words[0]):
            words = words[1:]
        if len(words) > 1 and Path(words[0]).name == program:
            calls.append(words[1:])
    return calls


def _is_shell(line: str) -> bool:
    try:
        shlex.split(line, comments=True)
    except ValueError:
        return False
    return True


@pytest.mark.parametrize("page", WRITTEN)
def test_every_setting_that_a_page_names_exists(page: str) -> None:
    named = set(re.findall(r"GRADLESS_([A-Z_]*[A-Z])\b", WRITTEN[page]))
    assert named <= {name.upper() for name in Settings.model_fields}


@pytest.mark.parametrize("page", WRITTEN)
def test_every_metric_that_a_page_names_exists(page: str) -> None:
    sources = "".join(file.read_text() for file in (ROOT / "app/observability").rglob("*.py"))
    defined = set(re.findall(r'"(gradless_[a-z_]+)"', sources))
    named = set(re.findall(r"`(gradless_[a-z_]+)`", WRITTEN[page]))
    assert {name for name in named if not {name, name.removesuffix("_total")} & defined} == set()


def test_the_configuration_page_holds_the_table_that_the_settings_command_prints() -> None:
    page = PAGES["docs/configuration.md"]
    held = page.split("<!-- settings -->\n")[1].split("\n<!-- /settings -->")[0]
    assert held == settings_table()


def test_the_api_page_names_every_problem_type_at_its_status() -> None:
    # Those of the table, and those that no exception stands for.
    rows = {row for row in vars(problems).values() if isinstance(row, Row)}
    rows |= {row for error, row in TABLE.items() if error is not ClientDisconnectedError}
    named = {
        (int(status), slug)
        for status, slugs in re.findall(r"^- (\d{3}): (.*(?:\n  .*)*)$", PAGES["docs/http-api.md"], re.MULTILINE)
        for slug in re.findall(r"`([a-z-]+)`", slugs)
    }
    assert named == {(row.status, row.slug) for row in rows}


def test_the_api_page_names_every_operation() -> None:
    operations = {
        (method, path)
        for path, item in create_app(Settings()).openapi()["paths"].items()
        for method in item
        if method in {"get", "post", "delete"}
    }
    named = re.findall(r"`(GET|POST|DELETE) (/[^`? ]*)", PAGES["docs/http-api.md"])
    assert operations <= {(method.lower(), path) for method, path in named}


def test_the_api_page_shows_a_problem_of_the_service() -> None:
    example = json.loads(re.findall(r"```json\n(.*?)```", PAGES["docs/http-api.md"], re.DOTALL)[0])
    formats = example["detail"].removesuffix(".").split(": ")[1].split(", ")
    row = TABLE[UnsupportedFormatError]
    shown = [example[member] for member in ("type", "title", "status", "detail")]
    assert shown == [row.type, row.title, row.status, str(UnsupportedFormatError(formats))]
