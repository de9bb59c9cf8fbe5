"""What a load makes of the answers that servers give."""

import asyncio
from collections.abc import Sequence

from benchmarks.exchanges import Connections, Exchange

_OK = b"HTTP/1.1 200 OK\r\nServer-Timing: queue;dur=1\r\nContent-Length: 2\r\n\r\nok"
_LAST = b"HTTP/1.1 503 Gone\r\nConnection: close\r\nContent-Length: 0\r\n\r\n"
_IN_CHUNKS = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n"
_CUT = b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nok"
_NO_HTTP = b"what do you want?\r\n\r\n"


async def _ended(answers: Sequence[bytes]) -> tuple[list[Exchange], int]:
    """One exchange after another with a server that gives these answers, an unfinished or unreadable one its last on
    the connection; and how many connections it took."""
    remaining = list(answers)
    serving: list[asyncio.Task[None] | None] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        serving.append(asyncio.current_task())
        while await reader.read(100):
            answer = remaining.pop(0)
            # In two pieces: an answer need not come whole.
            writer.write(answer[:20])
            await writer.drain()
            writer.write(answer[20:])
            if answer in {_CUT, _LAST}:
                break
        writer.close()
        await writer.wait_closed()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    host, port = server.sockets[0].getsockname()
    load = Connections(host, port, frozenset({b"server-timing"}))
    exchanges: list[Exchange] = []
    for _ in answers:
        done: asyncio.Future[Exchange] = asyncio.get_running_loop().create_future()
        load.send(Exchange(0.0, b"GET / HTTP/1.1\r\n\r\n", done.set_result))
        exchanges.append(await done)
    await load.all_ended(1)
    load.close()
    server.close()
    # They end when the load's connections have.
    await asyncio.gather(*filter(None, serving))
    return exchanges, len(serving)


def test_answers_are_read_whole_on_one_connection() -> None:
    exchanges, connections = asyncio.run(_ended([_OK, _IN_CHUNKS, _OK]))
    assert [exchange.status for exchange in exchanges] == [200, 200, 200]
    assert [exchange.fields for exchange in exchanges] == [
        {b"server-timing": b"queue;dur=1"},
        {},
        {b"server-timing": b"queue;dur=1"},
    ]
    assert connections == 1


def test_a_connection_that_the_server_ends_is_replaced() -> None:
    exchanges, connections = asyncio.run(_ended([_LAST, _OK]))
    assert [exchange.status for exchange in exchanges] == [503, 200]
    assert connections == 2


def test_incomplete_and_malformed_answers_count_as_none() -> None:
    exchanges, _ = asyncio.run(_ended([_CUT, _OK, _NO_HTTP, _OK]))
    assert [exchange.status for exchange in exchanges] == [0, 200, 0, 200]


def test_a_missing_server_gives_no_answer() -> None:
    async def status() -> int:
        server = await asyncio.start_server(lambda _reader, _writer: None, "127.0.0.1", 0)
        host, port = server.sockets[0].getsockname()
        server.close()
        done: asyncio.Future[Exchange] = asyncio.get_running_loop().create_future()
        Connections(host, port, frozenset({b"server-timing"})).send(
            Exchange(0.0, b"GET / HTTP/1.1\r\n\r\n", done.set_result)
        )
        return (await done).status

    assert asyncio.run(status()) == 0
