"""docker/compose.yaml and compose.gpu.yaml: by Compose's own schema, and against what they mount and start."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
import yaml

from app.process.lifetime import FORCED_AFTER_DRAIN_S
from app.settings import Settings
from observe import GRAFANA, PROMETHEUS, ROOT

FILES = [ROOT / "docker/compose.yaml", ROOT / "docker/compose.gpu.yaml", ROOT / "docker/compose.model.yaml"]
COMPOSE: dict[str, Any] = yaml.safe_load(FILES[0].read_text())
GPU: dict[str, Any] = yaml.safe_load(FILES[1].read_text())
MODEL: dict[str, Any] = yaml.safe_load(FILES[2].read_text())
SERVICES: dict[str, Any] = COMPOSE["services"]
OURS = {name: value for name, value in SERVICES["gradless"]["environment"].items() if name.startswith("GRADLESS_")}


def merged(below: Any, above: Any) -> Any:
    """Two files as Compose makes one of them: mappings are merged, lists joined, anything else is the latter's."""
    if isinstance(below, dict) and isinstance(above, dict):
        common = {key: merged(below[key], above[key]) for key in below.keys() & above.keys()}
        return below | above | common
    return below + above if isinstance(below, list) and isinstance(above, list) else above


def assert_valid(path: Path) -> None:
    """By Compose's own schema."""
    command = [Path(sys.executable).with_name("check-jsonschema"), "--builtin-schema", "vendor.compose-spec", path]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_it_is_valid_by_the_schema_of_compose(path: Path) -> None:
    assert_valid(path)


def test_both_files_together_are_valid_and_add_a_gpu_with_the_same_restrictions(tmp_path: Path) -> None:
    both = merged(COMPOSE, GPU)
    (tmp_path / "compose.yaml").write_text(yaml.safe_dump(both))
    assert_valid(tmp_path / "compose.yaml")
    gradless = both["services"]["gradless"]
    assert gradless["build"] == {"context": "..", "target": "cuda"}
    assert gradless["mem_limit"] == "16g"
    changed = {"image", "build", "deploy", "mem_limit"}
    assert {name for name in gradless if gradless[name] != SERVICES["gradless"].get(name)} == changed


def test_a_model_of_your_own_is_mounted_where_it_is_served_from_and_converted_for_later_starts(
    dockerfile: Any, tmp_path: Path
) -> None:
    both = merged(COMPOSE, MODEL)
    (tmp_path / "compose.yaml").write_text(yaml.safe_dump(both))
    assert_valid(tmp_path / "compose.yaml")
    gradless = both["services"]["gradless"]
    changed = {"environment", "volumes"}
    assert {name for name in gradless if gradless[name] != SERVICES["gradless"].get(name)} == changed
    models, cache = (volume.rsplit(":", 2) for volume in gradless["volumes"])
    assert (models[0].partition(":")[0], models[1:]) == ("${MODELS", ["/models", "ro"])
    assert (
        gradless["environment"].items()
        >= {
            "GRADLESS_MODELS": "/models/my-model",
            "GRADLESS_MODELS_FOLDER": "/models",
            "GRADLESS_DRAIN_TIMEOUT_S": "30",
        }.items()
    )
    assert cache == ["cache", dockerfile.environment("cpu")["GRADLESS_CACHE_FOLDER"]]
    assert "cache" in both["volumes"]


@pytest.mark.parametrize("name", SERVICES)
def test_a_service_can_write_only_to_volumes_and_tmp_and_gains_no_privilege(name: str) -> None:
    service = SERVICES[name]
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]


@pytest.mark.parametrize("name", SERVICES)
def test_a_service_can_be_reached_only_from_this_machine(name: str) -> None:
    assert all(port.startswith("127.0.0.1:") for port in SERVICES[name]["ports"])


@pytest.mark.parametrize("name", ["prometheus", "grafana"])
def test_images_of_other_projects_have_a_fixed_version_and_a_health_check(name: str) -> None:
    assert re.fullmatch(r"\w+/\w+:v?\d+\.\d+\.\d+", SERVICES[name]["image"])
    assert SERVICES[name]["healthcheck"]["test"][0] == "CMD"


def test_gradless_is_built_by_existing_targets(dockerfile: Any) -> None:
    for services in (SERVICES, GPU["services"]):
        target = services["gradless"]["build"]["target"]
        assert target in dockerfile.stages
        assert services["gradless"]["image"] == f"gradless:{target}"
    assert (FILES[0].parent / SERVICES["gradless"]["build"]["context"] / "Dockerfile").is_file()


def test_gradless_has_existing_settings_and_time_to_drain() -> None:
    settings = Settings(**{name.removeprefix("GRADLESS_").lower(): value for name, value in OURS.items()})
    grace_s = int(SERVICES["gradless"]["stop_grace_period"].removesuffix("s"))
    assert grace_s > settings.drain_timeout_s + FORCED_AFTER_DRAIN_S


def test_prometheus_scrapes_gradless_at_its_name_and_port(dockerfile: Any) -> None:
    [scraped] = yaml.safe_load((PROMETHEUS / "prometheus.yml").read_text())["scrape_configs"]
    [target] = scraped["static_configs"][0]["targets"]
    host, port = target.split(":")
    assert host in SERVICES
    assert port == dockerfile.environment("cpu")["GRADLESS_PORT"] == dockerfile.values("cpu", "EXPOSE")[-1]


def test_grafana_finds_prometheus_its_dashboards_and_its_first_page_where_they_are_mounted() -> None:
    mounted = mounts("grafana")
    assert mounted["/etc/grafana/provisioning"] == GRAFANA / "provisioning"
    [provider] = yaml.safe_load((GRAFANA / "provisioning/dashboards/gradless.yml").read_text())["providers"]
    dashboards = mounted[provider["options"]["path"]]
    assert dashboards == GRAFANA / "dashboards"
    home = Path(SERVICES["grafana"]["environment"]["GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"])
    assert str(home.parent) == provider["options"]["path"]
    assert (dashboards / home.name).is_file()
    [source] = yaml.safe_load((GRAFANA / "provisioning/datasources/prometheus.yml").read_text())["datasources"]
    address = urlsplit(source["url"])
    assert address.hostname in SERVICES
    assert f"127.0.0.1:{address.port}:{address.port}" in SERVICES["prometheus"]["ports"]


def test_prometheus_finds_its_configuration_and_rules_where_they_are_mounted() -> None:
    mounted = mounts("prometheus")
    assert mounted["/etc/prometheus"] == PROMETHEUS
    [configuration] = [word for word in SERVICES["prometheus"]["command"] if word.startswith("--config.file=")]
    assert configuration == "--config.file=/etc/prometheus/prometheus.yml"
    assert "--storage.tsdb.path=/prometheus" in SERVICES["prometheus"]["command"]
    assert "prometheus:/prometheus" in SERVICES["prometheus"]["volumes"]


def test_grafana_allows_anonymous_viewers_and_has_no_default_password() -> None:
    environment = SERVICES["grafana"]["environment"]
    assert environment["GF_AUTH_ANONYMOUS_ENABLED"] == "true"
    assert environment["GF_AUTH_ANONYMOUS_ORG_ROLE"] == "Viewer"
    assert environment["GF_SECURITY_DISABLE_INITIAL_ADMIN_CREATION"] == "true"


def test_the_gpu_variant_reserves_a_gpu() -> None:
    [device] = GPU["services"]["gradless"]["deploy"]["resources"]["reservations"]["devices"]
    assert device == {"driver": "nvidia", "count": 1, "capabilities": ["gpu"]}


def mounts(service: str) -> dict[str, Path]:
    """Folders of this repository by where they are mounted, read-only."""
    found = {}
    for volume in SERVICES[service]["volumes"]:
        source, target, *mode = volume.split(":")
        if source.startswith("."):
            assert mode == ["ro"]
            found[target] = (FILES[0].parent / source).resolve()
    return found
