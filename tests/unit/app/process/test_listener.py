"""The listening socket: which addresses can be bound, and which address the log and the welcome text name."""

from __future__ import annotations

import logging
import socket

import pytest

from app.process.listener import bind, log_listening
from app.settings import Settings
from models.interface.errors import StartError


def _has_ipv6() -> bool:
    try:
        with socket.socket(socket.AF_INET6) as probe:
            probe.bind(("::1", 0))
    except OSError:
        return False
    return True


_ANY = "0.0.0.0"  # noqa: S104 - bound, never listening

needs_ipv6 = pytest.mark.skipif(not _has_ipv6(), reason="this machine has no IPv6")


@pytest.mark.parametrize(
    ("host", "logged_host", "reachable_host"),
    [
        ("127.0.0.1", "127.0.0.1", "127.0.0.1"),
        ("127.0.0.2", "127.0.0.2", "127.0.0.2"),
        ("localhost", "127.0.0.1", "127.0.0.1"),
        (_ANY, _ANY, "127.0.0.1"),
        ("0", _ANY, "127.0.0.1"),
        pytest.param("::1", "[::1]", "[::1]", marks=needs_ipv6),
        pytest.param("::", "[::]", "[::1]", marks=needs_ipv6),
    ],
)
def test_the_log_names_the_bound_address_and_the_welcome_text_a_reachable_one(
    caplog: pytest.LogCaptureFixture,
    capsys: pytest.CaptureFixture[str],
    host: str,
    logged_host: str,
    reachable_host: str,
) -> None:
    settings = Settings(host=host, port=0, log_format="console")
    with bind(settings) as listener, caplog.at_level(logging.INFO):
        port = listener.getsockname()[1]
        log_listening(settings, listener)

    assert vars(caplog.records[-1])["address"] == f"http://{logged_host}:{port}"
    assert f"http://{reachable_host}:{port}/ in a browser" in capsys.readouterr().err


@pytest.mark.parametrize("host", ["not.there.invalid", "[::1]", "a" * 70, "192.0.2.1", "http://localhost"])
def test_the_error_for_an_unusable_host_names_the_host_and_its_setting(host: str) -> None:
    with pytest.raises(StartError, match="cannot listen on GRADLESS_HOST=") as raised:
        bind(Settings(host=host, port=0))

    assert host in str(raised.value)
    assert len(str(raised.value).splitlines()) == 1
