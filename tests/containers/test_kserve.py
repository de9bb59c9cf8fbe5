"""docker/kserve: by the schema of Kubernetes where KServe takes its objects, and against the service that they run."""

from __future__ import annotations

from typing import Any

import kubernetes_validate
import pytest
import yaml

from app.http.hosts import PROBES
from app.main import create_app
from app.process.lifetime import FORCED_AFTER_DRAIN_S
from app.settings import Settings
from models.interface.model_sources import split_name
from observe import ROOT

RUNTIME: dict[str, Any] = yaml.safe_load((ROOT / "docker/kserve/servingruntime.yaml").read_text())["spec"]
SERVICE: dict[str, Any] = yaml.safe_load((ROOT / "docker/kserve/inferenceservice.yaml").read_text())
[CONTAINER] = RUNTIME["containers"]
[PORT] = [port["containerPort"] for port in CONTAINER["ports"]]
# As KServe fills it in.
ENVIRONMENT = {
    variable["name"]: variable["value"].replace("{{.Name}}", SERVICE["metadata"]["name"])
    for variable in CONTAINER["env"]
}
SETTINGS = Settings(**{name.removeprefix("GRADLESS_").lower(): value for name, value in ENVIRONMENT.items()})
# terminationGracePeriodSeconds where nothing is said.
GRACE_S = 30


@pytest.mark.parametrize("version", ["1.30.0", kubernetes_validate.latest_version()])
def test_container_and_volumes_are_those_of_a_pod(version: str) -> None:
    pod = {"containers": RUNTIME["containers"], "volumes": RUNTIME["volumes"]}
    document = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "flowers"}, "spec": pod}
    kubernetes_validate.validate(document, version, strict=True)


def test_kserve_finds_the_container_the_format_and_the_protocol() -> None:
    model = SERVICE["spec"]["predictor"]["model"]
    assert CONTAINER["name"] == "kserve-container"
    assert model["modelFormat"]["name"] in {each["name"] for each in RUNTIME["supportedModelFormats"]}
    assert model["protocolVersion"] in RUNTIME["protocolVersions"]


def test_the_model_is_served_under_the_name_that_clients_ask_for() -> None:
    [stated] = SETTINGS.models
    assert split_name(stated) == (SERVICE["metadata"]["name"], "/mnt/models")


def test_probes_and_scrapes_reach_the_service_at_its_port() -> None:
    for probe in (CONTAINER["readinessProbe"], CONTAINER["livenessProbe"]):
        assert probe["httpGet"]["path"] in PROBES
        assert probe["httpGet"]["port"] == PORT == SETTINGS.port
    assert RUNTIME["annotations"]["prometheus.kserve.io/port"] == str(PORT)
    assert RUNTIME["annotations"]["prometheus.kserve.io/path"] in create_app(Settings()).openapi()["paths"]


def test_the_container_is_restricted_and_writes_to_its_volume_alone(dockerfile: Any) -> None:
    own = CONTAINER["securityContext"]
    assert f"{own['runAsUser']}:{own['runAsGroup']}" == dockerfile.values("cpu", "USER")[-1]
    assert own["runAsNonRoot"] is own["readOnlyRootFilesystem"] is True
    assert own["allowPrivilegeEscalation"] is False
    assert own["capabilities"] == {"drop": ["ALL"]}
    [mount] = CONTAINER["volumeMounts"]
    assert mount["mountPath"] in map(str, SETTINGS.cache_folder.parents)


def test_the_drain_fits_into_the_grace_period_of_a_pod() -> None:
    assert SETTINGS.drain_timeout_s + FORCED_AFTER_DRAIN_S < GRACE_S
