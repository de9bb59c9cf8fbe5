"""Settings: the defaults, and one line for each invalid variable."""

from __future__ import annotations

import sys

import pytest
from pydantic import ValidationError

from app.settings import Settings, SettingsError, ignored_variables, load_settings
from models.interface.extras import install_command


def _fault(monkeypatch: pytest.MonkeyPatch, **variables: str) -> str:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(SettingsError) as refused:
        load_settings()
    return str(refused.value)


def test_without_any_variable_the_embedded_model_is_served_locally() -> None:
    settings = load_settings()

    assert (settings.host, settings.port) == ("127.0.0.1", 8000)
    assert settings.models == ("efficientnet_lite0",)
    assert (settings.device, settings.precision) == ("auto", "fp32")
    assert (settings.max_batch_size, settings.max_batch_delay_ms, settings.queue_capacity) == (None, 0, 256)
    assert settings.decode_threads is None
    assert settings.debug_endpoints


def test_each_field_is_read_from_its_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GRADLESS_PORT", "0")
    monkeypatch.setenv("GRADLESS_MAX_BATCH_DELAY_MS", "2.5")
    monkeypatch.setenv("GRADLESS_DEBUG_ENDPOINTS", "off")
    monkeypatch.setenv("GRADLESS_PRECISION", "bf16")

    settings = load_settings()

    assert (settings.port, settings.max_batch_delay_ms) == (0, 2.5)
    assert (settings.debug_endpoints, settings.precision) == (False, "bf16")


def test_an_empty_variable_counts_as_unset(monkeypatch: pytest.MonkeyPatch) -> None:
    defaults = load_settings()
    for name in [*Settings.model_fields, "no_setting"]:
        if not name.startswith("api_keys"):
            monkeypatch.setenv(f"GRADLESS_{name.upper()}", "")

    assert load_settings() == defaults


@pytest.mark.parametrize("name", ["GRADLESS_API_KEYS", "GRADLESS_API_KEYS_FILE"])
def test_an_empty_variable_of_keys_is_refused(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    assert _fault(monkeypatch, **{name: ""}) == f"{name}: it contains no key; unset it to serve without keys"


# Service links of the Services gradless, with a named port, and gradless-gpu, with IPv6.
_SERVICE_LINKS = {
    "GRADLESS_SERVICE_HOST": "10.43.0.1",
    "GRADLESS_SERVICE_PORT": "80",
    "GRADLESS_SERVICE_PORT_HTTP": "80",
    "GRADLESS_PORT": "tcp://10.43.0.1:80",
    "GRADLESS_PORT_80_TCP": "tcp://10.43.0.1:80",
    "GRADLESS_PORT_80_TCP_PROTO": "tcp",
    "GRADLESS_PORT_80_TCP_PORT": "80",
    "GRADLESS_PORT_80_TCP_ADDR": "10.43.0.1",
    "GRADLESS_GPU_SERVICE_HOST": "fd00::7",
    "GRADLESS_GPU_SERVICE_PORT": "8000",
    "GRADLESS_GPU_PORT": "tcp://[fd00::7]:8000",
    "GRADLESS_GPU_PORT_8000_TCP": "tcp://[fd00::7]:8000",
    "GRADLESS_GPU_PORT_8000_TCP_PROTO": "tcp",
    "GRADLESS_GPU_PORT_8000_TCP_PORT": "8000",
    "GRADLESS_GPU_PORT_8000_TCP_ADDR": "fd00::7",
}


def test_service_links_of_kubernetes_are_ignored(monkeypatch: pytest.MonkeyPatch) -> None:
    defaults = load_settings()
    for name, value in _SERVICE_LINKS.items():
        monkeypatch.setenv(name, value)

    assert load_settings() == defaults
    assert ignored_variables() == sorted(_SERVICE_LINKS)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("GRADLESS_PORT", "tcp://10.43.0.1"),
        ("GRADLESS_PORT", "http://10.43.0.1:80"),
        ("GRADLESS_SERVICE_PORT", "http"),
        ("GRADLESS_PORT_80", "80"),
        ("GRADLESS_SERVICE_HOSTS", "10.43.0.1"),
        ("GRADLESS_HTTP_PORT", "8000"),
        ("GRADLESS_MODELS_PORT_80_TCP_PROTO", "http"),
    ],
)
def test_a_setting_that_resembles_a_service_link_is_checked(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str
) -> None:
    assert _fault(monkeypatch, **{name: value}).startswith(name)


@pytest.mark.parametrize(
    ("value", "models"),
    [("a", ("a",)), ("a,b", ("a", "b")), (" a , b ,", ("a", "b")), ("b,a:random", ("b", "a:random"))],
)
def test_models_are_separated_by_commas_and_keep_their_order(
    monkeypatch: pytest.MonkeyPatch, value: str, models: tuple[str, ...]
) -> None:
    monkeypatch.setenv("GRADLESS_MODELS", value)

    assert load_settings().models == models


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("GRADLESS_PORT", "eighty"),
        ("GRADLESS_PORT", "65536"),
        ("GRADLESS_PORT", "-1"),
        ("GRADLESS_PORT", "80\n81"),
        ("GRADLESS_MODELS", " , "),
        ("GRADLESS_MODELS", "a,b,a"),
        ("GRADLESS_PRECISION", "int8"),
        ("GRADLESS_MAX_BATCH_SIZE", "0"),
        ("GRADLESS_MAX_BATCH_SIZE", "2.5"),
        ("GRADLESS_MAX_BATCH_DELAY_MS", "nan"),
        ("GRADLESS_MAX_BATCH_DELAY_MS", "-1"),
        ("GRADLESS_DECODE_THREADS", "0"),
        ("GRADLESS_MAX_IMAGE_BYTES", "20MB"),
        ("GRADLESS_READ_TIMEOUT_S", "0"),
        ("GRADLESS_DEADLINE_S", "inf"),
        ("GRADLESS_DEBUG_ENDPOINTS", "perhaps"),
        ("GRADLESS_LOG_LEVEL", "loud"),
    ],
)
def test_a_wrong_value_gives_one_line_with_the_variable_and_the_value(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str
) -> None:
    line = _fault(monkeypatch, **{name: value})

    assert line.startswith(f"{name}=")
    assert len(line.splitlines()) == 1
    assert len(line) < 160
    assert all(part in line for part in value.split())
    # A list is shown as it was given.
    assert "tuple" not in line
    assert "()" not in line


@pytest.mark.parametrize(
    "value",
    ["a.example:8000", "http://a.example", "a.example/", "[::1]", "*a.example", "a.*", "b.example,a.example:80", "a b"],
)
def test_an_invalid_host_is_refused_with_the_expected_form(monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    line = _fault(monkeypatch, GRADLESS_ALLOWED_HOSTS=value)

    assert line.startswith(f"GRADLESS_ALLOWED_HOSTS={value}: ")
    assert "is not a host: use a name or address without scheme, port, path or brackets" in line


@pytest.mark.parametrize(
    "value",
    [
        "https://a.example/",
        "https://a.example/app",
        "a.example",
        "https://A.example",
        "https://a.example:443",
        "http://a.example:80",
        "https://*.example",
        "null",
    ],
)
def test_an_invalid_origin_is_refused_with_the_expected_form(monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    line = _fault(monkeypatch, GRADLESS_CORS_ORIGINS=value)

    assert line.startswith(f"GRADLESS_CORS_ORIGINS={value}: ")
    assert "is not an origin: use scheme://host[:port], lower case, no default port, no trailing slash" in line


def test_hosts_and_origins_of_every_valid_form_are_accepted(monkeypatch: pytest.MonkeyPatch) -> None:
    hosts = ("*", "a.example", "*.b.example", "LOCALHOST", "my_service", "192.0.2.7", "::1", "2001:db8::7")
    pages = (
        "*",
        "https://a.example",
        "http://localhost:3000",
        "http://[::1]:3000",
        "https://a.example:80",
        "ext-a://b",
    )
    monkeypatch.setenv("GRADLESS_ALLOWED_HOSTS", ",".join(hosts))
    monkeypatch.setenv("GRADLESS_CORS_ORIGINS", ",".join(pages))

    settings = load_settings()

    assert (settings.allowed_hosts, settings.cors_origins) == (hosts, pages)


def test_each_invalid_value_gives_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    lines = _fault(monkeypatch, GRADLESS_PORT="x", GRADLESS_DEVISE="cpu", GRADLESS_PRECISION="fp8").splitlines()

    assert sorted(line.split("=")[0].split()[0] for line in lines) == [
        "GRADLESS_DEVISE",
        "GRADLESS_PORT",
        "GRADLESS_PRECISION",
    ]


def test_a_misspelt_variable_is_refused_with_a_suggestion(monkeypatch: pytest.MonkeyPatch) -> None:
    line = _fault(monkeypatch, GRADLESS_MAX_BATCHSIZE="8")

    assert line == "GRADLESS_MAX_BATCHSIZE is not a setting; did you mean GRADLESS_MAX_BATCH_SIZE?"


def test_an_unknown_variable_is_refused_without_a_suggestion(monkeypatch: pytest.MonkeyPatch) -> None:
    assert _fault(monkeypatch, GRADLESS_XYZZY_9="1") == "GRADLESS_XYZZY_9 is not a setting"


def test_variables_without_the_prefix_are_ignored(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GRAD_PORT", "x")
    monkeypatch.setenv("PORT", "x")

    assert load_settings().port == 8000


def test_a_queue_smaller_than_one_request_is_refused_with_both_names(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    line = _fault(monkeypatch, GRADLESS_QUEUE_CAPACITY="8", GRADLESS_MAX_IMAGES_PER_REQUEST="9")

    assert "GRADLESS_QUEUE_CAPACITY (8)" in line
    assert "GRADLESS_MAX_IMAGES_PER_REQUEST (9)" in line
    assert len(line.splitlines()) == 1


def test_a_queue_of_exactly_one_request_is_accepted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GRADLESS_QUEUE_CAPACITY", "9")
    monkeypatch.setenv("GRADLESS_MAX_IMAGES_PER_REQUEST", "9")

    assert load_settings().queue_capacity == 9


def test_more_models_than_the_maximum_are_refused_with_both_names(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    line = _fault(monkeypatch, GRADLESS_MODELS="a,b,c", GRADLESS_MAX_MODELS="2")

    assert "GRADLESS_MAX_MODELS (2)" in line
    assert "GRADLESS_MODELS names (3)" in line
    assert len(line.splitlines()) == 1


def test_settings_are_immutable() -> None:
    with pytest.raises(ValidationError):
        load_settings().port = 1  # type: ignore[misc]


def test_every_setting_has_a_description() -> None:
    assert all(field.description for field in Settings.model_fields.values())


@pytest.mark.parametrize("missing", ["opentelemetry", "opentelemetry.sdk", "opentelemetry.exporter"])
def test_traces_without_their_extra_are_refused_with_the_command_to_install_it(
    monkeypatch: pytest.MonkeyPatch, missing: str
) -> None:
    # None in sys.modules makes the import fail.
    for name in [name for name in sys.modules if name == missing or name.startswith(f"{missing}.")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, missing, None)

    assert _fault(monkeypatch, GRADLESS_TRACES="true") == (
        f"GRADLESS_TRACES=true needs OpenTelemetry: {install_command('otel')}"
    )


def test_grpc_needs_its_extra_and_a_port_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "grpc", None)
    assert _fault(monkeypatch, GRADLESS_GRPC_PORT="8001") == (
        f"GRADLESS_GRPC_PORT needs grpcio and protobuf: {install_command('grpc')}"
    )
    assert "gRPC needs a port of its own" in _fault(monkeypatch, GRADLESS_GRPC_PORT="8000")


@pytest.mark.parametrize(
    ("former", "current"),
    [("GRADLESS_FRONTS", "GRADLESS_HTTP_WORKERS"), ("GRADLESS_MAX_WAIT_MS", "GRADLESS_MAX_BATCH_DELAY_MS")],
)
def test_a_former_name_of_a_setting_is_refused_with_the_current_one(
    monkeypatch: pytest.MonkeyPatch, former: str, current: str
) -> None:
    assert _fault(monkeypatch, **{former: "1"}) == f"{former} is now called {current}"
