"""The command that installs an extra works where gradless was installed from: no package index has it."""

from __future__ import annotations

import sys
from types import SimpleNamespace

import pytest

from models.interface.extras import install_command

_PIP = f"{sys.executable} -m pip install"


@pytest.mark.parametrize(
    ("recorded", "command"),
    [
        (
            '{"dir_info": {"editable": true}, "url": "file:///home/me/gradless"}',
            f"{_PIP} -e '/home/me/gradless[otel]' -c /home/me/gradless/constraints.txt",
        ),
        ('{"dir_info": {}, "url": "file:///home/me/my%20code"}', f"{_PIP} '/home/me/my code[otel]'"),
        (
            '{"archive_info": {}, "url": "file:///dist/gradless-0.1.0-py3-none-any.whl"}',
            f"{_PIP} '/dist/gradless-0.1.0-py3-none-any.whl[otel]'",
        ),
        (None, f"{_PIP} 'gradless[otel]'"),
    ],
    ids=["checkout", "folder", "wheel", "index"],
)
def test_an_extra_is_installed_from_where_gradless_came(
    monkeypatch: pytest.MonkeyPatch, recorded: str | None, command: str
) -> None:
    installed = SimpleNamespace(read_text=lambda _name: recorded)
    monkeypatch.setattr("models.interface.extras.distribution", lambda _name: installed)

    assert install_command("otel") == command
