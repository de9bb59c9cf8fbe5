"""Serve requests that ask for another protocol as plain HTTP/1.1, which RFC 9110, section 7.8 allows.

Java's HttpClient and `curl --http2` ask for HTTP/2 by default. httptools ends such a request at its head and treats the
body as data of the other protocol, so without this module their images would never be read.
"""

from __future__ import annotations

import httptools
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol


def upgrade_requested(protocol: HttpToolsProtocol) -> bool:
    """Return whether the parser is at a head that `feed` will parse again; its callbacks must be ignored."""
    return bool(protocol.parser.should_upgrade()) and protocol.parser.get_method() != b"CONNECT"


def feed(protocol: HttpToolsProtocol, data: bytes) -> None:
    """Feed `data` to the protocol's parser. A head that asks for an upgrade is parsed again without that request.

    Raises httptools.HttpParserError.
    """
    # A view and a loop: a client may pipeline a thousand such requests, which must neither be copied nor recurse.
    rest = memoryview(data)
    while True:
        try:
            protocol.parser.feed_data(rest)
        except httptools.HttpParserUpgrade as upgrade:
            rest = rest[upgrade.args[0] :]
            head = _head_without_upgrade(protocol)
            protocol.parser = httptools.HttpRequestParser(protocol)
            protocol.parser.set_dangerous_leniencies(lenient_data_after_close=True)
            protocol.parser.feed_data(head)
        else:
            return


def _head_without_upgrade(protocol: HttpToolsProtocol) -> bytes:
    version = protocol.parser.get_http_version().encode("ascii")
    lines = [b" ".join([protocol.parser.get_method(), protocol.url, b"HTTP/" + version])]
    for name, value in protocol.headers:
        kept = value
        if name == b"connection":
            kept = b", ".join(option for option in value.split(b",") if option.strip().lower() != b"upgrade")
        if name != b"upgrade" and (kept or not value):
            lines.append(name + b": " + kept)
    return b"\r\n".join([*lines, b"", b""])
