"""A caller may ask to go on in another protocol, as Java's and curl's clients do for HTTP/2 by the way. A server need
not (RFC 9110, 7.8), and here HTTP/1.1 is all there is: the request is taken as if it had not asked."""

from __future__ import annotations

import httptools
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol


class IgnoreUpgradeParser:
    """httptools' parser for `protocol`, which has to let pass what is told of a request while `asked_to_leave`: it
    comes again. httptools takes such a request to end with its head, and its body to be of the other protocol;
    therefore it is given the head once more, without the wish."""

    def __init__(self, protocol: HttpToolsProtocol) -> None:
        self._protocol = protocol
        self._parser = protocol.parser

    @property
    def asked_to_leave(self) -> bool:
        # CONNECT cannot stay: it asks for nothing else.
        return bool(self._parser.should_upgrade()) and self.get_method() != b"CONNECT"

    def feed_data(self, data: bytes) -> None:
        """Raises httptools.HttpParserError."""
        # Views: each of many such requests in one read would copy all behind it.
        left = memoryview(data)
        head: bytes | None = None
        while True:
            try:
                if head is not None:
                    self._parser.feed_data(head)
                self._parser.feed_data(left)
            except httptools.HttpParserUpgrade as upgrade:
                if not self.asked_to_leave:
                    raise
                left = left[upgrade.args[0] :]
                head = self._head_without_it()
                self._parser = httptools.HttpRequestParser(self._protocol)
                self._parser.set_dangerous_leniencies(lenient_data_after_close=True)
            else:
                return

    def should_upgrade(self) -> bool:
        """Never, whoever asks."""
        return False

    def get_method(self) -> bytes:
        """Of the request whose head has been read."""
        method: bytes = self._parser.get_method()
        return method

    def get_http_version(self) -> str:
        """Of the request whose head has been read, as `1.1`."""
        version: str = self._parser.get_http_version()
        return version

    def should_keep_alive(self) -> bool:
        """Whether another request may follow the one whose head has been read."""
        return bool(self._parser.should_keep_alive())

    def _head_without_it(self) -> bytes:
        version = self.get_http_version().encode("ascii")
        lines = [b" ".join([self.get_method(), self._protocol.url, b"HTTP/" + version])]
        for name, value in self._protocol.headers:
            kept = value
            if name == b"connection":
                kept = b", ".join(word for word in value.split(b",") if word.strip().lower() != b"upgrade")
            if name != b"upgrade" and (kept or not value):
                lines.append(name + b": " + kept)
        return b"\r\n".join([*lines, b"", b""])
