"""The Open Inference Protocol over gRPC, from a real process: each has one event loop, which gRPC needs."""

from __future__ import annotations

import itertools
import re
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Self

import httpx2
import numpy as np
import pytest

grpc = pytest.importorskip("grpc")

from app.api.contracts.grpc_messages import HEALTH, INFERENCE, methods_of  # noqa: E402 - needs protobuf
from app.api.contracts.tensors import join_elements  # noqa: E402

KEY = "key-of-an-inferrer"
METADATA = (("x-api-key", KEY), ("x-request-id", "mine"))
RIGHTS = {"GRADLESS_API_KEYS": f"inference+metrics:{KEY}"}
METHODS = {method.name: method for service in (INFERENCE, HEALTH) for method in methods_of(service)}
SIDE = 224
PATIENCE_S = 30


class Client:
    """A client of a server process that was started with GRADLESS_GRPC_PORT=0."""

    def __init__(self, server: Any) -> None:
        logged = next((line for line in server.log if "gRPC" in line), None) or server.wait_for_line("gRPC")
        found = re.search(r"127\.0\.0\.1:\d+", logged)
        assert found, logged
        self.address = found[0]
        self.channel = grpc.insecure_channel(self.address)

    def call(self, method_name: str, metadata: Any = METADATA, timeout_s: float = PATIENCE_S, **fields: Any) -> Any:
        """Return the response."""
        return self.call_with_trailers(method_name, metadata, timeout_s, **fields)[0]

    def call_with_trailers(
        self, method_name: str, metadata: Any, timeout_s: float, **fields: Any
    ) -> tuple[Any, dict[str, str]]:
        method = METHODS[method_name]
        stub = self.channel.unary_unary(method.path, method.request.SerializeToString, method.response.FromString)
        response, ended = stub.with_call(method.request(**fields), timeout=timeout_s, metadata=metadata)
        return response, dict(ended.trailing_metadata())

    def infer(self, *files: bytes, model: str = "null", **fields: Any) -> Any:
        tensor = {"name": "x", "datatype": "BYTES", "shape": [len(files), 1]}
        sent = {"inputs": [tensor], "raw_input_contents": [join_elements(files)]} | fields
        return self.call("ModelInfer", model_name=model, **sent)


def _code(call: Callable[..., Any], *arguments: Any, **fields: Any) -> str:
    with pytest.raises(grpc.RpcError) as raised:
        call(*arguments, **fields)
    return str(raised.value.code().name)


@pytest.fixture(scope="module")
def served(serving: type[Any], warm_command: Any) -> Iterator[Any]:
    settings = {"GRADLESS_MODELS": "null", "GRADLESS_GRPC_PORT": "0", **RIGHTS}
    with serving(warm_command.start, **settings) as running:
        yield running


@pytest.fixture(scope="module")
def client(served: Any) -> Iterator[Client]:
    client = Client(served)
    with client.channel:
        yield client


@pytest.fixture
def http(served: Any) -> Iterator[httpx2.Client]:
    with httpx2.Client(base_url=served.address, headers={"X-API-Key": KEY}, timeout=PATIENCE_S) as opened:
        yield opened


def _rows(response: Any) -> list[Any]:
    """Return the rows of each output."""
    assert not any(output.HasField("contents") for output in response.outputs)
    return [
        np.frombuffer(raw, "<f4").reshape(list(output.shape))
        for output, raw in zip(response.outputs, response.raw_output_contents, strict=True)
    ]


def test_server_and_models_are_described_as_over_rest(client: Client, http: httpx2.Client) -> None:
    name = "null@pixels"
    described, rest = client.call("ModelMetadata", name=name), http.get(f"/v2/models/{name}").json()
    config, rest_config = client.call("ModelConfig", name=name).config, http.get(f"/v2/models/{name}/config").json()
    index = client.call("RepositoryIndex").models

    assert client.call("ServerLive", ()).live
    assert client.call("ServerReady", ()).ready
    assert client.call("ServerMetadata").name == "gradless"
    assert "statistics" not in client.call("ServerMetadata").extensions
    assert (described.name, dict(described.properties)) == (rest["name"], rest["properties"])
    assert list(described.inputs[0].shape) == rest["inputs"][0]["shape"] == [-1, 3, SIDE, SIDE]
    assert (config.max_batch_size, list(config.input[0].dims)) == (rest_config["max_batch_size"], [3, SIDE, SIDE])
    assert config.HasField("dynamic_batching")
    assert [model.name for model in index] == [model["name"] for model in http.post("/v2/repository/index").json()]
    assert [client.call("ModelReady", name=model).ready for model in ("null", "nobody")] == [True, False]


def test_files_get_the_native_answers(client: Client, http: httpx2.Client, clock_png: bytes) -> None:
    native = http.post("/v1/predict?top_k=1000", content=clock_png).json()["results"][0]
    expected = np.zeros(1000, np.float32)
    for found in native["predictions"]:
        expected[found["index"]] = found["probability"]
    both = [{"name": "features"}, {"name": "probabilities"}]
    best = [{"name": "probabilities", "parameters": {"classification": {"int64_param": 1}}}]
    typed = [{"name": "x", "datatype": "BYTES", "shape": [1], "contents": {"bytes_contents": [clock_png]}}]

    features, probabilities = _rows(client.infer(clock_png, clock_png, outputs=both))
    [of_typed] = _rows(client.infer(inputs=typed, raw_input_contents=[]))
    classes = client.infer(clock_png, outputs=best, id="7")

    np.testing.assert_allclose(features, [native["features"]] * 2, atol=1e-4)
    np.testing.assert_allclose(probabilities, [expected] * 2, atol=1e-4)
    np.testing.assert_allclose(of_typed, [expected], atol=1e-4)
    first = native["predictions"][0]
    assert classes.raw_output_contents[0][4:].decode().endswith(f":{first['index']}:{first['label']}")
    assert (classes.id, classes.model_name) == ("7", "null")
    assert classes.parameters["fingerprint"].string_param


@pytest.mark.parametrize(
    ("datatype", "field"),
    [("UINT8", "uint_contents"), ("INT32", "int_contents"), ("UINT64", "uint64_contents"), ("FP32", "fp32_contents")],
)
def test_pixels_are_raw_or_typed(client: Client, datatype: str, field: str) -> None:
    pixels = np.arange(3 * SIDE * SIDE) % 256
    dtype = {"UINT8": "<u1", "INT32": "<i4", "UINT64": "<u8", "FP32": "<f4"}[datatype]
    tensor = {"name": "x", "datatype": datatype, "shape": [1, 3, SIDE, SIDE]}
    raw = client.infer(
        model="null@pixels@features", inputs=[tensor], raw_input_contents=[pixels.astype(dtype).tobytes()]
    )
    typed = client.infer(
        model="null@pixels@features", inputs=[tensor | {"contents": {field: pixels.tolist()}}], raw_input_contents=[]
    )

    assert _rows(raw)[0].tolist() == _rows(typed)[0].tolist() == [pytest.approx(pixels[:: SIDE * SIDE] / 255)]


def test_faults_have_the_codes_of_the_protocol(client: Client, clock_png: bytes) -> None:
    one = {"name": "x", "datatype": "BYTES", "shape": [1]}
    typed = one | {"contents": {"bytes_contents": [clock_png]}}
    pixels = {"name": "x", "datatype": "UINT8", "shape": [1, 3, 8, 8]}
    halves = {"name": "x", "datatype": "FP16", "shape": [1, 3, SIDE, SIDE]}
    shared = {"parameters": {"shared_memory_region": {"string_param": "r"}}}

    for code, fields in {
        "NOT_FOUND": [{"model": "nobody"}, {"model_version": "9"}],
        "INVALID_ARGUMENT": [
            {"inputs": []},
            {"inputs": [one, one]},
            {"inputs": [typed]},
            {"inputs": [pixels], "raw_input_contents": [bytes(192)]},
            {"inputs": [halves], "raw_input_contents": []},
            {"inputs": [one], "raw_input_contents": [b"\xff\xff\xff\xff"]},
            {"inputs": [one], "raw_input_contents": []},
            {"outputs": [{"name": "logits"}]},
            {"outputs": [{"name": "probabilities", "parameters": {"classification": {"string_param": "3"}}}]},
        ],
        "RESOURCE_EXHAUSTED": [
            {"inputs": [one | {"shape": [65]}]},
            {"inputs": [pixels | {"contents": {"uint_contents": [300] * 5_000_000}}], "raw_input_contents": []},
        ],
        "UNIMPLEMENTED": [{"inputs": [one | shared]}],
    }.items():
        for each in fields:
            assert _code(client.infer, clock_png, **each) == code, each
    with pytest.raises(grpc.RpcError, match="image 1: "):
        client.infer(clock_png, b"\x89PNG")


def test_keys_come_in_metadata_and_requests_are_counted_under_their_id(
    client: Client, http: httpx2.Client, clock_png: bytes
) -> None:
    raw = [join_elements([clock_png])]
    sent = {
        "model_name": "null",
        "inputs": [{"name": "x", "datatype": "BYTES", "shape": [1]}],
        "raw_input_contents": raw,
    }
    bearer = (("authorization", f"Bearer {KEY}"), ("if-match", "another"))

    _, trailers = client.call_with_trailers("ModelInfer", METADATA, PATIENCE_S, **sent)
    metrics = http.get("/metrics").text

    assert trailers["x-request-id"] == "mine"
    assert "forward" in trailers["server-timing"]
    assert _code(client.call, "ModelInfer", (), **sent) == "UNAUTHENTICATED"
    assert _code(client.call, "ModelInfer", bearer, **sent) == "FAILED_PRECONDITION"
    assert _code(client.call, "RepositoryModelLoad", model_name="null") == "PERMISSION_DENIED"
    route = 'contract="oip",method="POST",route="/inference.GRPCInferenceService/ModelInfer"'
    assert f'gradless_requests_total{{code="200",{route}}}' in metrics


def test_health_checks_need_no_key(client: Client) -> None:
    for service in ("", INFERENCE):
        assert client.call("Check", (), service=service).status == 1
    assert _code(client.call, "Check", (), service="elsewhere") == "NOT_FOUND"
    assert client.call("ServerReady", ()).ready


def test_a_deadline_drops_the_image_from_its_queue(start_holding: Callable[..., Any], clock_png: bytes) -> None:
    server = start_holding(GRADLESS_GRPC_PORT="0")
    client = Client(server)
    server.process.send_signal(signal.SIGUSR1)
    with client.channel, ThreadPoolExecutor() as pool, httpx2.Client(base_url=server.address, timeout=60) as http:
        held = pool.submit(client.infer, clock_png)
        server.wait_for_line("holds")
        raw = {"raw_input_contents": [join_elements([clock_png])]}
        tensor = [{"name": "x", "datatype": "BYTES", "shape": [1]}]
        sent = {"model_name": "null", "inputs": tensor, **raw}
        # On a busy machine a short deadline may pass before the image is in the queue.
        deadlines_s = itertools.count(0.3, 0.3)
        while not re.search(r'cancelled_total{model="null",stage="queue"} [1-9]', http.get("/metrics").text):
            assert _code(client.call, "ModelInfer", timeout_s=next(deadlines_s), **sent) == "DEADLINE_EXCEEDED"
        while '{code="499",contract="oip"' not in http.get("/metrics").text:
            time.sleep(0.02)
        server.process.send_signal(signal.SIGUSR2)
        assert held.result().model_name == "null"


class Endless:
    """Messages of a call, the first of which does not come before the context is left."""

    def __init__(self) -> None:
        self._left = threading.Event()

    def __enter__(self) -> Iterator[Any]:
        return iter(self._next, None)

    def __exit__(self, *_: object) -> None:
        self._left.set()

    def _next(self) -> None:
        self._left.wait(PATIENCE_S)


def _infer_without_message(client: Client, metadata: Any = ()) -> Any:
    infer = METHODS["ModelInfer"]
    stub = client.channel.stream_unary(infer.path, infer.request.SerializeToString, infer.response.FromString)
    with Endless() as messages:
        return stub(messages, metadata=metadata)


def test_rights_are_checked_before_a_message_comes(client: Client) -> None:
    assert _code(_infer_without_message, client) == "UNAUTHENTICATED"


def test_the_server_outlives_late_messages_and_wrong_paths(start_server: Callable[..., Any]) -> None:
    server = start_server(GRADLESS_MODELS="null", GRADLESS_GRPC_PORT="0", GRADLESS_READ_TIMEOUT_S="0.5")
    client = Client(server)
    with client.channel:
        assert _code(_infer_without_message, client) == "DEADLINE_EXCEEDED"
        _call_a_path_that_is_not_utf_8(client.address)
        server.wait_for_line("gRPC server failed")
        stub = client.channel.unary_unary(METHODS["ServerLive"].path)
        assert stub(b"", timeout=PATIENCE_S, wait_for_ready=True)


def _call_a_path_that_is_not_utf_8(address: str) -> None:
    with RawConnection(address) as raw:
        raw.call(b"/\xff")
        raw.connection.recv(1)


class RawConnection:
    """HTTP/2 by hand (RFC 9113), from `source`. Its streams have a window of zero: no answer can be sent to it."""

    def __init__(self, address: str, source: str = "127.0.0.1") -> None:
        host, _, port = address.partition(":")
        self.connection = socket.create_connection((host, int(port)), PATIENCE_S, source_address=(source, 0))
        self._streams = itertools.count(1, 2)
        initial_window = (4).to_bytes(2) + bytes(4)
        self.connection.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + self._frame(4, 0, 0, initial_window))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        # The file of an unfinished `frames` would keep it open.
        self.connection.shutdown(socket.SHUT_RDWR)
        self.connection.close()

    def call(self, path: bytes) -> None:
        """Begin a call without a message."""
        fields = {b":method": b"POST", b":scheme": b"http", b":path": path, b":authority": b"x", b"te": b"trailers"}
        fields[b"content-type"] = b"application/grpc"
        # Literal fields (RFC 7541, section 6.2.2), in one frame of type HEADERS that ends both (RFC 9113, section 6.2).
        block = b"".join(
            b"\x00" + bytes([len(each)]) + each if part == 0 else bytes([len(each)]) + each
            for field in fields.items()
            for part, each in enumerate(field)
        )
        self.connection.sendall(self._frame(1, 5, next(self._streams), block))

    def frames(self) -> Iterator[tuple[int, int, int, bytes]]:
        """Receive type, flags, stream and payload of frames, and answer settings."""
        with self.connection.makefile("rb") as file:
            while head := file.read(9):
                kind, flags, stream, payload = (
                    head[3],
                    head[4],
                    int.from_bytes(head[5:]),
                    file.read(int.from_bytes(head[:3])),
                )
                if kind == 4 and not flags & 1:
                    self.connection.sendall(self._frame(4, 1, 0, b""))
                yield kind, flags, stream, payload

    @staticmethod
    def _frame(kind: int, flags: int, stream: int, payload: bytes) -> bytes:
        return len(payload).to_bytes(3) + bytes([kind, flags]) + stream.to_bytes(4) + payload


_FEW_CALLS = """
from app.api.contracts import grpc_server
grpc_server._MAX_CALLS, grpc_server._MAX_CALLS_OF_CLIENT, grpc_server._MORE_READS = 32, 4, 1
"""


def test_calls_whose_answers_a_client_does_not_read_keep_no_other_client_out(
    start_patched: Callable[..., Any],
) -> None:
    small = {"GRADLESS_QUEUE_CAPACITY": "1", "GRADLESS_MAX_IMAGES_PER_REQUEST": "1"}
    server = start_patched(0, _FEW_CALLS, GRADLESS_GRPC_PORT="0", **small)
    client = Client(server)
    path = METHODS["ServerLive"].path
    with client.channel, RawConnection(client.address, "127.0.0.2") as raw:
        for _ in range(20):
            raw.call(path.encode())
        # Those above the limit are ended: the headers of their answers are the last frame.
        ended = (stream for kind, flags, stream, _ in raw.frames() if kind == 1 and flags & 1)
        assert {next(ended) for _ in range(16)} == set(range(9, 41, 2))
        stub = client.channel.unary_unary(path)
        assert all(stub(b"", timeout=PATIENCE_S) for _ in range(4))
    route = 'contract="oip",method="POST",route="/inference.GRPCInferenceService/ServerLive"'
    with httpx2.Client(base_url=server.address, timeout=PATIENCE_S) as http:
        assert f'gradless_requests_total{{code="429",{route}}} 16.0' in http.get("/metrics").text
    # Their connection has ended, and with it the calls.
    while not _accepted(client.address, "127.0.0.2", path.encode()):
        time.sleep(0.02)


def _accepted(address: str, source: str, path: bytes) -> bool:
    with RawConnection(address, source) as raw:
        raw.call(path)
        return not next(flags & 1 for kind, flags, _, _ in raw.frames() if kind == 1)


def test_a_body_that_no_handler_reads_has_a_small_window(served: Any) -> None:
    with RawConnection(Client(served).address) as raw:
        settings = next(payload for kind, flags, _, payload in raw.frames() if (kind, flags) == (4, 0))
    stated = {settings[at + 1]: int.from_bytes(settings[at + 2 : at + 6]) for at in range(0, len(settings), 6)}
    # SETTINGS_INITIAL_WINDOW_SIZE, and its default (RFC 9113, section 6.5.2).
    assert stated.get(4, 65_535) <= 65_535


def test_compressed_messages_are_read(client: Client, clock_png: bytes) -> None:
    tensor = [{"name": "x", "datatype": "BYTES", "shape": [1]}]
    method = METHODS["ModelInfer"]
    stub = client.channel.unary_unary(method.path, method.request.SerializeToString, method.response.FromString)
    sent = method.request(
        model_name="null", inputs=tensor, raw_input_contents=[join_elements([clock_png + bytes(9999)])]
    )

    for compression in (grpc.Compression.Gzip, grpc.Compression.Deflate):
        answer = stub(sent, timeout=PATIENCE_S, metadata=METADATA, compression=compression)
        assert len(_rows(answer)[0]) == 1


def test_a_drain_answers_what_was_accepted(start_holding: Callable[..., Any], clock_png: bytes) -> None:
    server = start_holding(GRADLESS_GRPC_PORT="0")
    client = Client(server)
    watch = METHODS["Watch"]
    with client.channel, ThreadPoolExecutor() as pool:
        stream = client.channel.unary_stream(watch.path, watch.request.SerializeToString, watch.response.FromString)
        health = stream(watch.request(), timeout=PATIENCE_S)
        assert next(health).status == 1
        server.process.send_signal(signal.SIGUSR1)
        accepted = pool.submit(client.infer, clock_png)
        server.wait_for_line("holds")
        server.process.send_signal(signal.SIGTERM)
        assert next(health).status == 2
        server.process.send_signal(signal.SIGUSR2)
        assert accepted.result().model_name == "null"
        assert list(health) == []
        assert _code(client.infer, clock_png) == "UNAVAILABLE"
    assert server.exit_status() == 0


def test_workers_share_the_port(start_server: Callable[..., Any], clock_png: bytes) -> None:
    server = start_server(GRADLESS_MODELS="null", GRADLESS_GRPC_PORT="0", GRADLESS_HTTP_WORKERS="2")
    for _ in range(4):
        client = Client(server)
        with client.channel:
            assert len(_rows(client.infer(clock_png))[0]) == 1
    with httpx2.Client(base_url=server.address, timeout=PATIENCE_S) as http:
        metrics = http.get("/metrics").text
    route = 'contract="oip",method="POST",route="/inference.GRPCInferenceService/ModelInfer"'
    assert f'gradless_requests_total{{code="200",{route}}} 4.0' in metrics
    server.process.send_signal(signal.SIGTERM)
    assert server.exit_status() == 0


def test_a_port_in_use_stops_the_start(served: Any, client: Client, warm_command: Any, serving: type[Any]) -> None:
    port = client.address.rpartition(":")[2]
    second = serving(warm_command.start, GRADLESS_MODELS="null", GRADLESS_GRPC_PORT=port)
    try:
        second.wait_for_line(f"cannot start: cannot listen on .*GRADLESS_GRPC_PORT={port}")
        assert second.exit_status() == 3
    finally:
        second.__exit__()
    assert served.process.poll() is None
