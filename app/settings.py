"""The only reader of the environment: GRADLESS_* variables, checked before anything else happens."""

from __future__ import annotations

import difflib
import importlib.util
import os
import sys
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import AfterValidator, BeforeValidator, Field, SecretStr, ValidationError, model_validator
from pydantic_settings import (
    BaseSettings,
    EnvSettingsSource,
    NoDecode,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
)

from app.security.api_keys import Keys, read_keys
from app.security.origins import host_names, origins
from app.service_links import service_links
from models.interface.image_limits import ImageLimits

LogFormat = Literal["auto", "json", "console"]

PREFIX = "GRADLESS_"
_KEYS = frozenset({f"{PREFIX}API_KEYS", f"{PREFIX}API_KEYS_FILE"})
_MIB = 2**20

# Former names.
_RENAMED = {
    f"{PREFIX}FRONTS": f"{PREFIX}HTTP_WORKERS",
    f"{PREFIX}MAX_WAIT_MS": f"{PREFIX}MAX_BATCH_DELAY_MS",
}


class SettingsError(Exception):
    """The settings are wrong. One line for each that is, naming the variable and what it may be."""

    def __init__(self, lines: list[str]) -> None:
        super().__init__("\n".join(lines))


def _comma_separated(value: object) -> object:
    return tuple(name.strip() for name in value.split(",") if name.strip()) if isinstance(value, str) else value


# A variable that holds several, separated by commas.
_Names = Annotated[tuple[str, ...], NoDecode, BeforeValidator(_comma_separated)]


def _some_and_distinct(names: tuple[str, ...]) -> tuple[str, ...]:
    if not names:
        raise ValueError("at least one name is needed")
    if len(set(names)) < len(names):
        raise ValueError("each name may stand once")
    return names


class Settings(BaseSettings):
    """How this process serves. Each field is the environment variable GRADLESS_<FIELD>."""

    model_config = SettingsConfigDict(env_prefix=PREFIX, frozen=True, extra="forbid", env_ignore_empty=True)

    host: str = Field("127.0.0.1", description="address to listen on")
    port: int = Field(8000, ge=0, le=65535, description="port to listen on; 0 takes a free one")
    models: Annotated[_Names, AfterValidator(_some_and_distinct)] = Field(
        ("efficientnet_lite0",),
        description="models to serve, separated by commas; the first is the default",
    )
    models_folder: Path | None = Field(
        None, description="folder whose folders hold models that may be loaded by name while others are served"
    )
    max_models: int = Field(16, ge=1, le=1024, description="models served at once, at most")
    device: str = Field("auto", description="auto (CUDA, else MPS, else CPU), cpu, cuda, cuda:N or mps")
    precision: Literal["fp32", "bf16", "fp16", "int8"] = Field(
        "fp32", description="numbers that the forward computes with; int8 needs openvino and a calibration folder"
    )
    backend: Literal["auto", "eager", "compiled", "openvino"] = Field(
        "auto", description="way to run the forward; auto: openvino on a CPU that has it installed, else eager"
    )
    cache_folder: Path = Field(
        Path("~/.cache/gradless"), description="folder for converted models, which later starts read"
    )
    calibration_folder: Path | None = Field(
        None, description="folder of some hundred images like those to be served, from which int8 takes its ranges"
    )
    max_batch_size: int | None = Field(
        None, ge=1, le=1024, description="images in one forward, at most; unset: 32, on a CPU what keeps its cores busy"
    )
    max_batch_delay_ms: float = Field(
        0, ge=0, le=1000, description="ms an image may wait for company; 0 sends what is there at once"
    )
    queue_capacity: int = Field(
        256,
        ge=1,
        le=65536,
        description="images in the building per model, at least as many as a request may have; more get 429",
    )
    decode_threads: int | None = Field(
        None, ge=1, le=256, description="threads that decode; unset: one for each core the process may use, 8 at most"
    )
    http_workers: int | None = Field(
        None,
        ge=0,
        le=64,
        description="HTTP worker processes, which read, decode and answer for the engine process; Linux only; 0: one "
        "process does it all; unset: on CUDA three quarters of the cores, 16 at most, else 0",
    )
    max_image_bytes: int = Field(20 * _MIB, ge=1, le=2**30, description="bytes of one image file")
    max_request_bytes: int = Field(64 * _MIB, ge=1, le=2**32, description="bytes of one request's body")
    max_held_bytes: int = Field(
        2**30,
        ge=1,
        le=2**44,
        description="bytes of all bodies that are being received or answered, at least as many as a request may have; "
        "more get 429",
    )
    max_images_per_request: int = Field(64, ge=1, le=1024, description="images in one multipart request")
    max_image_pixels: int = Field(
        50_000_000, ge=1, le=2**31, description="pixels of one image, and of a TIFF's tile, known from the header"
    )
    max_aspect_ratio: int = Field(50, ge=1, le=1000, description="longer side of an image over its shorter one")
    max_decode_seconds: float = Field(
        1,
        gt=0,
        le=3600,
        description="CPU seconds that decoding one image may take, as predicted from its header; more is refused. "
        "Images that take over an eighth of it are decoded in separate processes",
    )
    max_decode_bytes: int = Field(
        224 * _MIB,
        ge=16 * _MIB,
        le=2**40,
        description="bytes of memory that decoding one image may take, as predicted from its header, and all that are "
        "decoded in separate processes at once",
    )
    read_timeout_s: float = Field(
        30, gt=0, le=3600, description="s a client may take to send its body, or to read 64 KiB of an answer"
    )
    deadline_s: float = Field(30, gt=0, le=3600, description="s from a body read to its answer")
    load_timeout_s: float = Field(
        600,
        gt=0,
        le=86400,
        description="s a model may take to be loaded while others are served; after that the request gets 503",
    )
    forward_timeout_s: float = Field(
        60,
        gt=0,
        le=3600,
        description="s a forward may take; a model that takes longer is started anew. "
        "A decode that outlasts both this and the deadline ends the process",
    )
    search_index: Path | None = Field(
        None, description="folder of an index of `gradless search build`, for POST /v1/search; needs the extra search"
    )
    drain_timeout_s: float = Field(30, ge=0, le=3600, description="s that accepted requests get after SIGTERM")
    fixed_batch: bool = Field(
        False, description="run every forward in one shape, so that an image's answer is the same to the last bit"
    )
    api_keys: SecretStr | None = Field(
        None, description="keys that callers need, separated by commas: KEY or RIGHTS:KEY"
    )
    api_keys_file: Path | None = Field(None, description="file of such keys, one in a line")
    allowed_hosts: Annotated[_Names, AfterValidator(host_names)] = Field(
        (),
        description="host names it may be asked by, separated by commas; unset: localhost on loopback, else any",
    )
    cors_origins: Annotated[_Names, AfterValidator(origins)] = Field(
        (), description="origins whose pages may ask it in a browser, separated by commas; unset: none"
    )
    debug_endpoints: bool = Field(
        True, description="serve /debug/grad-modes, to this machine and to keys with the right debug"
    )
    log_level: Literal["debug", "info", "warning", "error"] = Field("info", description="least level logged")
    log_format: LogFormat = Field("auto", description="form of log lines; auto: json unless stderr is a terminal")
    slow_request_ms: float = Field(
        1000, gt=0, le=3_600_000, description="ms from which on the line of an inference request is a warning"
    )
    metrics_max_age_s: float = Field(
        1, ge=0, le=60, description="s for which all scrapers get the same exposition; 0 builds one for each"
    )
    traces: bool = Field(
        False, description="send OpenTelemetry traces to where the OTEL_* variables say; needs the extra otel"
    )

    @property
    def image_limits(self) -> ImageLimits:
        """What an image may be and cost."""
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
        """pydantic's, without the variables that are service links."""
        del settings_cls, dotenv_settings, file_secret_settings
        if isinstance(env_settings, EnvSettingsSource):
            links = {name.lower() for name in ignored_variables()}
            env_settings.env_vars = {
                name: value for name, value in env_settings.env_vars.items() if name.lower() not in links
            }
        return init_settings, env_settings

    def known_keys(self) -> Keys:
        """Who may ask."""
        return read_keys(None if self.api_keys is None else self.api_keys.get_secret_value(), self.api_keys_file)

    @model_validator(mode="after")
    def _one_request_fits(self) -> Self:
        if self.max_images_per_request > self.queue_capacity:
            raise ValueError(
                f"{PREFIX}QUEUE_CAPACITY ({self.queue_capacity}) must be at least "
                f"{PREFIX}MAX_IMAGES_PER_REQUEST ({self.max_images_per_request}): "
                "a request of that many images would never be admitted"
            )
        return self

    @model_validator(mode="after")
    def _models_may_be_served(self) -> Self:
        if len(self.models) > self.max_models:
            raise ValueError(
                f"{PREFIX}MAX_MODELS ({self.max_models}) must be at least the number of models that {PREFIX}MODELS "
                f"names ({len(self.models)})"
            )
        return self

    @model_validator(mode="after")
    def _one_body_fits(self) -> Self:
        if self.max_request_bytes > self.max_held_bytes:
            raise ValueError(
                f"{PREFIX}MAX_HELD_BYTES ({self.max_held_bytes}) must be at least "
                f"{PREFIX}MAX_REQUEST_BYTES ({self.max_request_bytes}): "
                "a body of that many bytes would never be taken"
            )
        return self

    @model_validator(mode="after")
    def _keys_can_be_read(self) -> Self:
        if self.api_keys is not None and self.api_keys_file is not None:
            raise ValueError(f"{PREFIX}API_KEYS and {PREFIX}API_KEYS_FILE: one of them is enough")
        try:
            self.known_keys()
        except ValueError as error:
            variable = "API_KEYS" if self.api_keys_file is None else "API_KEYS_FILE"
            raise ValueError(f"{PREFIX}{variable}: {error}") from None
        return self

    @model_validator(mode="after")
    def _traces_can_be_sent(self) -> Self:
        if self.traces and not all(map(_installed, ("opentelemetry.sdk", "opentelemetry.exporter.otlp.proto.http"))):
            raise ValueError(f"{PREFIX}TRACES=true needs OpenTelemetry: pip install 'gradless[otel]'")
        return self

    @model_validator(mode="after")
    def _index_can_be_searched(self) -> Self:
        if self.search_index is not None and not all(map(_installed, ("pyarrow", "usearch"))):
            raise ValueError(f"{PREFIX}SEARCH_INDEX needs usearch and pyarrow: pip install 'gradless[search]'")
        return self

    @model_validator(mode="after")
    def _workers_can_share_memory(self) -> Self:
        if self.http_workers and not sys.platform.startswith("linux"):
            raise ValueError(
                f"{PREFIX}HTTP_WORKERS={self.http_workers} needs Linux: workers share memory as no other system has it"
            )
        return self

    @model_validator(mode="after")
    def _int8_is_calibrated(self) -> Self:
        if self.precision == "int8" and self.calibration_folder is None:
            raise ValueError(f"{PREFIX}PRECISION=int8 needs {PREFIX}CALIBRATION_FOLDER: a folder of images of yours")
        return self


def _installed(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:
        # Not even a package above it is there.
        return False


def ignored_variables() -> list[str]:
    """Variables with the prefix that Kubernetes has set, and nobody as a setting."""
    return service_links(os.environ)


def load_settings() -> Settings:
    """The settings of the environment. An empty variable counts as unset. Raises SettingsError, also for a GRADLESS_
    variable that is none."""
    lines = [*_unknown_variables(), *_empty_keys()]
    try:
        settings = Settings()
    except ValidationError as error:
        lines += [_line(detail["loc"], detail["msg"], detail["input"]) for detail in error.errors()]
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
            # Without the prefix, which makes all of them alike.
            similar = difflib.get_close_matches(name.upper().removeprefix(PREFIX), known, n=1)
            lines.append(f"{name} is no setting" + (f"; did you mean {PREFIX}{similar[0]}?" if similar else ""))
    return lines


def _empty_keys() -> list[str]:
    """A secret that was not filled in must not open the service to everybody."""
    return [
        f"{name}: there is no key in it; unset it to serve without keys"
        for name, value in sorted(os.environ.items())
        if not value and name.upper() in _KEYS
    ]


def _line(location: tuple[int | str, ...], message: str, value: object) -> str:
    message = message.removeprefix("Value error, ")
    if not location:
        return message
    shown = ",".join(value) if isinstance(value, tuple) else " ".join(str(value).split())
    return f"{PREFIX}{str(location[0]).upper()}={shown}: {message[:1].lower()}{message[1:]}"
