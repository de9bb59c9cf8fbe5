"""Where the service listens: the address that the log names is the one that the kernel has given."""

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


_ANY = "0.0.0.0"  # noqa: S104 - for a moment

needs_ipv6 = pytest.mark.skipif(not _has_ipv6(), reason="this machine has no IPv6")


@pytest.mark.parametrize(
    ("host", "listening_on", "reached_at"),
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
def test_the_log_names_the_address_and_the_welcome_one_at_which_it_is_reached(
    caplog: pytest.LogCaptureFixture,
    capsys: pytest.CaptureFixture[str],
    host: str,
    listening_on: str,
    reached_at: str,
) -> None:
    settings = Settings(host=host, port=0, log_format="console")
    with bind(settings) as listener, caplog.at_level(logging.INFO):
        port = listener.getsockname()[1]
        log_listening(settings, listener)

    assert vars(caplog.records[-1])["address"] == f"http://{listening_on}:{port}"
    assert f"http://{reached_at}:{port}/ in a browser" in capsys.readouterr().err


@pytest.mark.parametrize("host", ["not.there.invalid", "[::1]", "a" * 70, "192.0.2.1", "http://localhost"])
def test_a_host_that_cannot_be_listened_on_is_named_with_its_setting(host: str) -> None:
    with pytest.raises(StartError, match="cannot listen on GRADLESS_HOST=") as refused:
        bind(Settings(host=host, port=0))

    assert host in str(refused.value)
    assert len(str(refused.value).splitlines()) == 1
