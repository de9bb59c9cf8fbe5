"""The settings: GRADLESS_* environment variables, validated before anything else starts.

No other module reads the environment for settings; commands without settings only look at GRADLESS_LOG_LEVEL.
"""

from __future__ import annotations

import difflib
import os
import re
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import AfterValidator, BeforeValidator, Field, SecretStr, ValidationError, model_validator
from pydantic_settings import BaseSettings, EnvSettingsSource, NoDecode, PydanticBaseSettingsSource, SettingsConfigDict

from app.http.api_keys import Keys, read_keys
from app.http.hosts import host_names, origins
from models.interface.extras import install_command, installed
from models.interface.model_sources import Precision
from models.interface.request import ImageLimits

LogFormat = Literal["auto", "json", "console"]

PREFIX = "GRADLESS_"
_KEYS = frozenset({f"{PREFIX}API_KEYS", f"{PREFIX}API_KEYS_FILE"})
_MIB = 2**20

# Old names and new ones.
_RENAMED = {f"{PREFIX}FRONTS": f"{PREFIX}HTTP_WORKERS", f"{PREFIX}MAX_WAIT_MS": f"{PREFIX}MAX_BATCH_DELAY_MS"}

# Kubernetes sets variables in every pod for each Service of its namespace: for one called gradless, for example,
# GRADLESS_PORT=tcp://10.43.0.1:80.
_SERVICE = r"GRADLESS(?:_[A-Z0-9]+)*"
_SERVICE_PORT = rf"{_SERVICE}_PORT_\d+_(?:TCP|UDP|SCTP)"
_ADDRESS = r"[0-9a-fA-F.:]+"
_URL = rf"(?:tcp|udp|sctp)://(?:{_ADDRESS}|\[{_ADDRESS}\]):\d+"
# Both name and value must match: a setting with the same name has another form of value.
_SERVICE_LINKS = tuple(
    (re.compile(name), re.compile(value))
    for name, value in (
        (rf"{_SERVICE}_SERVICE_HOST", _ADDRESS),
        (rf"{_SERVICE}_SERVICE_PORT(?:_[A-Z0-9_]+)?", r"\d+"),
        (rf"{_SERVICE}_PORT", _URL),
        (_SERVICE_PORT, _URL),
        (rf"{_SERVICE_PORT}_PROTO", "tcp|udp|sctp"),
        (rf"{_SERVICE_PORT}_PORT", r"\d+"),
        (rf"{_SERVICE_PORT}_ADDR", _ADDRESS),
    )
)


class SettingsError(Exception):
    """One or more settings are invalid. The message has one line for each, with the variable and its allowed values."""

    def __init__(self, lines: list[str]) -> None:
        super().__init__("\n".join(lines))


def _comma_separated(value: object) -> object:
    return tuple(name.strip() for name in value.split(",") if name.strip()) if isinstance(value, str) else value


# A comma-separated list.
_Names = Annotated[tuple[str, ...], NoDecode, BeforeValidator(_comma_separated)]


def _non_empty_and_distinct(names: tuple[str, ...]) -> tuple[str, ...]:
    if not names:
        raise ValueError("at least one name is required")
    if len(set(names)) < len(names):
        raise ValueError("each name may appear once")
    return names


class Settings(BaseSettings):
    """The settings of a process. Each field is the environment variable GRADLESS_<FIELD>."""

    model_config = SettingsConfigDict(env_prefix=PREFIX, frozen=True, extra="forbid", env_ignore_empty=True)

    host: str = Field("127.0.0.1", description="address to listen on")
    port: int = Field(8000, ge=0, le=65535, description="port to listen on; 0: any free port")
    grpc_port: int | None = Field(
        None,
        ge=0,
        le=65535,
        description="port for the Open Inference Protocol over gRPC; needs the extra grpc; 0: any free port",
    )
    models: Annotated[_Names, AfterValidator(_non_empty_and_distinct)] = Field(
        ("efficientnet_lite0",),
        description="models to serve, comma-separated; the first is the default; NAME=SOURCE sets the name",
    )
    models_folder: Path | None = Field(None, description="folder of models that can be loaded by name at runtime")
    max_models: int = Field(16, ge=1, le=1024, description="maximum number of models served at once")
    device: str = Field(
        "auto",
        description="auto (CUDA, else MPS, else CPU), cpu, cuda, cuda:N or mps; or a list: cuda:0,cuda:1",
    )
    precision: Precision = Field(
        "fp32", description="numeric precision of the forward; int8 needs openvino and a calibration folder"
    )
    backend: Literal["auto", "eager", "compiled", "openvino"] = Field(
        "auto", description="how the forward runs; auto: openvino on a CPU if it is installed, else eager"
    )
    cache_folder: Path = Field(
        Path("~/.cache/gradless"), description="folder for converted models; later starts load them from there"
    )
    calibration_folder: Path | None = Field(
        None, description="folder with some hundred images like those to be served, for int8"
    )
    max_batch_size: int | None = Field(
        None,
        ge=1,
        le=1024,
        description="maximum images in one forward; unset: 32, on a CPU as many as keep its cores busy",
    )
    max_batch_delay_ms: float = Field(
        0, ge=0, le=1000, description="maximum ms that an image waits for its batch to fill; 0: batches start at once"
    )
    queue_capacity: int = Field(
        256,
        ge=1,
        le=65536,
        description="maximum admitted images per model, at least GRADLESS_MAX_IMAGES_PER_REQUEST; further requests get "
        "429",
    )
    decode_threads: int | None = Field(
        None, ge=1, le=256, description="decode threads; unset: one per available core, at most 8"
    )
    http_workers: int | None = Field(
        None,
        ge=0,
        le=64,
        description="processes that read requests and decode images; Linux only; 0: one process does all; unset: on "
        "CUDA three quarters of the cores, at most 16, else 0",
    )
    max_image_bytes: int = Field(20 * _MIB, ge=1, le=2**30, description="maximum bytes of one image file")
    max_request_bytes: int = Field(64 * _MIB, ge=1, le=2**32, description="maximum bytes of one request body")
    max_held_bytes: int = Field(
        2**30,
        ge=1,
        le=2**44,
        description="maximum bytes of all request bodies in progress, at least GRADLESS_MAX_REQUEST_BYTES; further "
        "requests get 429",
    )
    max_images_per_request: int = Field(64, ge=1, le=1024, description="maximum images in one request")
    max_image_pixels: int = Field(
        50_000_000,
        ge=1,
        le=2**31,
        description="maximum pixels of one image, by its header",
    )
    max_aspect_ratio: int = Field(
        50, ge=1, le=1000, description="maximum ratio of the longer side of an image to the shorter"
    )
    max_decode_seconds: float = Field(
        1,
        gt=0,
        le=3600,
        description="maximum predicted CPU seconds of a decode; above a fifth of it, a separate process decodes",
    )
    max_decode_bytes: int = Field(
        224 * _MIB,
        ge=32 * _MIB,
        le=2**40,
        description="maximum predicted bytes of memory to decode one image, and all images in separate processes",
    )
    read_timeout_s: float = Field(
        30, gt=0, le=3600, description="maximum s for a client to send its body, or to read 64 KiB of a response"
    )
    deadline_s: float = Field(30, gt=0, le=3600, description="maximum s from the received body to the response")
    load_timeout_s: float = Field(
        600, gt=0, le=86400, description="maximum s to load a model at runtime; after that the request gets 503"
    )
    forward_timeout_s: float = Field(
        60,
        gt=0,
        le=3600,
        description="maximum s of a forward; a model that exceeds it is restarted. "
        "A decode that exceeds both this and the deadline ends the process",
    )
    search_index: Path | None = Field(
        None, description="folder of `gradless search build`, for POST /v1/search; needs the extra search"
    )
    drain_timeout_s: float = Field(30, ge=0, le=3600, description="s to answer accepted requests after SIGTERM")
    fixed_batch: bool = Field(False, description="run all forwards with one batch shape, for bit-identical results")
    exact_jpeg: bool = Field(False, description="decode large JPEGs in full, not at a reduced size")
    api_keys: SecretStr | None = Field(
        None, description="API keys that clients need, comma-separated: KEY or RIGHTS:KEY"
    )
    api_keys_file: Path | None = Field(None, description="file of API keys, one per line")
    allowed_hosts: Annotated[_Names, AfterValidator(host_names)] = Field(
        (), description="host names that requests may use, comma-separated; unset: localhost on loopback, else any"
    )
    cors_origins: Annotated[_Names, AfterValidator(origins)] = Field(
        (), description="origins whose pages may send requests from a browser, comma-separated; unset: none"
    )
    debug_endpoints: bool = Field(
        True, description="serve /debug/grad-modes to localhost and to keys with the right debug"
    )
    log_level: Literal["debug", "info", "warning", "error"] = Field("info", description="minimum level of log lines")
    log_format: LogFormat = Field("auto", description="format of log lines; auto: json unless stderr is a terminal")
    slow_request_ms: float = Field(
        1000, gt=0, le=3_600_000, description="ms above which an inference request is logged as a warning"
    )
    metrics_max_age_s: float = Field(
        1, ge=0, le=60, description="s for which scrapes of /metrics get the same exposition"
    )
    traces: bool = Field(False, description="send OpenTelemetry traces, by the OTEL_* variables; needs the extra otel")

    @property
    def image_limits(self) -> ImageLimits:
        """The limits of size and decode cost of an image."""
        return ImageLimits(self.max_image_pixels, self.max_aspect_ratio, self.max_decode_seconds, self.max_decode_bytes)

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Exclude Kubernetes service links from the environment."""
        del settings_cls, dotenv_settings, file_secret_settings
        if isinstance(env_settings, EnvSettingsSource):
            links = {name.lower() for name in ignored_variables()}
            env_settings.env_vars = {
                name: value for name, value in env_settings.env_vars.items() if name.lower() not in links
            }
        return init_settings, env_settings

    def known_keys(self) -> Keys:
        """Return the API keys and their rights."""
        return read_keys(None if self.api_keys is None else self.api_keys.get_secret_value(), self.api_keys_file)

    @model_validator(mode="after")
    def _settings_agree(self) -> Self:
        problem = next(self._disagreements(), None)
        if problem is not None:
            raise ValueError(problem)
        return self

    def _disagreements(self) -> Iterator[str]:
        """Yield what is wrong with settings that are valid by themselves."""
        if self.max_images_per_request > self.queue_capacity:
            yield (
                f"{PREFIX}QUEUE_CAPACITY ({self.queue_capacity}) must be at least "
                f"{PREFIX}MAX_IMAGES_PER_REQUEST ({self.max_images_per_request}): "
                "a request with that many images would never be admitted"
            )
        if len(self.models) > self.max_models:
            yield (
                f"{PREFIX}MAX_MODELS ({self.max_models}) must be at least the number of models that {PREFIX}MODELS "
                f"names ({len(self.models)})"
            )
        if self.max_request_bytes > self.max_held_bytes:
            yield (
                f"{PREFIX}MAX_HELD_BYTES ({self.max_held_bytes}) must be at least "
                f"{PREFIX}MAX_REQUEST_BYTES ({self.max_request_bytes}): "
                "a body of that many bytes would never be accepted"
            )
        if self.api_keys is not None and self.api_keys_file is not None:
            yield f"{PREFIX}API_KEYS and {PREFIX}API_KEYS_FILE are both set; set one of them"
        try:
            self.known_keys()
        except ValueError as error:
            yield f"{PREFIX}{'API_KEYS' if self.api_keys_file is None else 'API_KEYS_FILE'}: {error}"
        if self.grpc_port and self.grpc_port == self.port:
            yield f"{PREFIX}GRPC_PORT and {PREFIX}PORT are both {self.port}; gRPC needs a port of its own"
        if self.http_workers and not sys.platform.startswith("linux"):
            yield f"{PREFIX}HTTP_WORKERS={self.http_workers} needs Linux: the workers use its shared memory"
        if self.precision == "int8" and self.calibration_folder is None:
            yield f"{PREFIX}PRECISION=int8 needs {PREFIX}CALIBRATION_FOLDER, a folder of your images"
        yield from self._missing_extras()

    def _missing_extras(self) -> Iterator[str]:
        """Yield which settings need packages that are not installed."""
        if self.traces and not installed("opentelemetry.sdk", "opentelemetry.exporter.otlp.proto.http"):
            yield f"{PREFIX}TRACES=true needs OpenTelemetry: {install_command('otel')}"
        if self.grpc_port is not None and not installed("grpc", "google.protobuf"):
            yield f"{PREFIX}GRPC_PORT needs grpcio and protobuf: {install_command('grpc')}"
        if self.search_index is not None and not installed("pyarrow", "usearch"):
            yield f"{PREFIX}SEARCH_INDEX needs usearch and pyarrow: {install_command('search')}"


def ignored_variables() -> list[str]:
    """Return the GRADLESS_* variables that Kubernetes has set as service links."""
    return sorted(
        variable
        for variable, stated in os.environ.items()
        if any(name.fullmatch(variable) and value.fullmatch(stated) for name, value in _SERVICE_LINKS)
    )


def load_settings(options: Mapping[str, str] | None = None) -> Settings:
    """Return the settings of the environment. `options` are texts by name of the setting, and win over its variable.

    An empty variable counts as unset. An empty option is refused, as is an unknown GRADLESS_* variable. Raises
    SettingsError.
    """
    options = options or {}
    lines = [*_unknown_variables(), *_empty_keys(options)]
    lines += [
        f"{_named(name, options)} is empty; give a value or leave it out" for name in options if not options[name]
    ]
    try:
        settings = Settings(**options)  # type: ignore[arg-type]  # texts, as the environment has them
    except ValidationError as error:
        for detail in error.errors():
            named = _named(str(detail["loc"][0]), options) if detail["loc"] else None
            lines.append(_line(named, detail["msg"], detail["input"]))
    else:
        if not lines:
            return settings
    raise SettingsError(lines)


def _unknown_variables() -> list[str]:
    known = {name.upper() for name in Settings.model_fields}
    ignored = set(ignored_variables())
    lines = []
    for name, value in sorted(os.environ.items()):
        if not value or name in ignored:
            continue
        if name.upper() in _RENAMED:
            lines.append(f"{name} is now called {_RENAMED[name.upper()]}")
        elif name.upper().startswith(PREFIX) and name.upper().removeprefix(PREFIX) not in known:
            # The common prefix would make all names similar.
            similar = difflib.get_close_matches(name.upper().removeprefix(PREFIX), known, n=1)
            lines.append(f"{name} is not a setting" + (f"; did you mean {PREFIX}{similar[0]}?" if similar else ""))
    return lines


def _empty_keys(options: Mapping[str, str]) -> list[str]:
    """An empty secret is an error, because without keys the service is open to everyone."""
    return [
        f"{name}: it contains no key; unset it to serve without keys"
        for name, value in sorted(os.environ.items())
        if not value and name.upper() in _KEYS and name.upper().removeprefix(PREFIX).lower() not in options
    ]


def _named(setting: str, options: Mapping[str, str]) -> str:
    """Return where the value of a setting was given: its variable, or its option of `gradless serve`."""
    if setting not in options:
        return f"{PREFIX}{setting.upper()}"
    return "MODEL" if setting == "models" else f"--{setting.replace('_', '-')}"


def _line(named: str | None, message: str, value: object) -> str:
    message = message.removeprefix("Value error, ")
    if named is None:
        return message
    shown = ",".join(value) if isinstance(value, tuple) else " ".join(str(value).split())
    return f"{named}={shown}: {message[:1].lower()}{message[1:]}"
