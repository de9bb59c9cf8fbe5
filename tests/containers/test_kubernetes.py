"""docker/kubernetes: by the schemas of the oldest Kubernetes that they are for and of the newest, and against the
service that they run. Kustomize's part needs kubectl, which is no package of the registries that tests install from."""

from __future__ import annotations

import shlex
import shutil
import subprocess
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

from app.http.api_keys import read_keys
from app.main import create_app
from app.process.lifetime import FORCED_AFTER_DRAIN_S
from app.settings import Settings
from observe import ROOT

FOLDER = ROOT / "docker/kubernetes"
KUSTOMIZATION = yaml.safe_load((FOLDER / "base/kustomization.yaml").read_text())
OBJECTS: dict[str, dict[str, Any]] = {
    document["kind"]: document
    for name in KUSTOMIZATION["resources"]
    for document in yaml.safe_load_all((FOLDER / "base" / name).read_text())
}
OF_KUBERNETES = [kind for kind in OBJECTS if kind != "PodMonitor"]
POD: dict[str, Any] = OBJECTS["Deployment"]["spec"]["template"]["spec"]
[GRADLESS] = POD["containers"]
ENVIRONMENT = {variable["name"]: variable["value"] for variable in GRADLESS["env"]}
# Before 1.30 preStop could not sleep by itself.
VERSIONS = ["1.30.0", kubernetes_validate.latest_version()]

needs_kubectl = pytest.mark.skipif(shutil.which("kubectl") is None, reason="kubectl is not installed")


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("kind", OF_KUBERNETES)
def test_each_object_matches_the_schema_of_its_kind_without_extra_fields(kind: str, version: str) -> None:
    kubernetes_validate.validate(OBJECTS[kind], version, strict=True)


def test_every_file_of_the_base_is_a_part_of_it() -> None:
    held = {path.name for path in (FOLDER / "base").iterdir()}
    assert held == {*KUSTOMIZATION["resources"], "kustomization.yaml"}


@pytest.mark.parametrize("probe", ["startupProbe", "readinessProbe", "livenessProbe"])
def test_probes_request_existing_paths(probe: str) -> None:
    request = GRADLESS[probe]["httpGet"]
    assert request["port"] == "http"
    assert request["path"] == ("/healthz" if probe == "livenessProbe" else "/readyz")
    assert request["path"] in create_app(Settings()).openapi()["paths"]


def test_the_grace_period_of_a_pod_covers_its_sleep_and_drain() -> None:
    drain_s = Settings(drain_timeout_s=ENVIRONMENT["GRADLESS_DRAIN_TIMEOUT_S"]).drain_timeout_s
    sleep_s = GRADLESS["lifecycle"]["preStop"]["sleep"]["seconds"]
    assert sleep_s > 0
    assert POD["terminationGracePeriodSeconds"] > sleep_s + drain_s + FORCED_AFTER_DRAIN_S


def test_a_pod_is_restricted_and_runs_as_the_user_of_the_image(dockerfile: Any) -> None:
    own = GRADLESS["securityContext"]
    assert POD["securityContext"]["runAsNonRoot"] is True
    assert POD["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    user = f"{POD['securityContext']['runAsUser']}:{POD['securityContext']['runAsGroup']}"
    assert user == dockerfile.values("cpu", "USER")[-1]
    assert own["readOnlyRootFilesystem"] is True
    assert own["allowPrivilegeEscalation"] is False
    assert own["capabilities"] == {"drop": ["ALL"]}
    assert POD["automountServiceAccountToken"] is False


def test_a_pod_gets_no_variables_of_the_service_that_leads_to_it() -> None:
    assert POD["enableServiceLinks"] is False


def test_nothing_is_mounted_over_the_model_of_the_image(dockerfile: Any) -> None:
    cache = dockerfile.environment("cpu")["GRADLESS_CACHE_FOLDER"]
    assert [mount["mountPath"] for mount in GRADLESS["volumeMounts"]] == ["/tmp"]  # noqa: S108 - inside
    assert not cache.startswith("/tmp")  # noqa: S108 - inside


def test_every_selector_matches_the_label_of_the_pods(dockerfile: Any) -> None:
    labels = OBJECTS["Deployment"]["spec"]["template"]["metadata"]["labels"]
    assert OBJECTS["Deployment"]["spec"]["selector"]["matchLabels"] == labels
    assert OBJECTS["Service"]["spec"]["selector"] == labels
    assert OBJECTS["PodMonitor"]["spec"]["selector"]["matchLabels"] == labels
    assert OBJECTS["PodDisruptionBudget"]["spec"]["selector"]["matchLabels"] == labels
    [port] = GRADLESS["ports"]
    assert port == {"name": "http", "containerPort": int(dockerfile.environment("cpu")["GRADLESS_PORT"])}
    assert OBJECTS["Service"]["spec"]["ports"][0]["targetPort"] == port["name"]


def test_prometheus_scrapes_the_metrics_under_the_job_name_of_the_alerts() -> None:
    # Its schema is the operator's own; what stands here is what is relied on.
    spec = OBJECTS["PodMonitor"]["spec"]
    job = OBJECTS["Deployment"]["spec"]["template"]["metadata"]["labels"][spec["jobLabel"]]
    assert f'up{{job="{job}"}}' in (ROOT / "docker/prometheus/rules/alerts.yml").read_text()
    [endpoint] = spec["podMetricsEndpoints"]
    assert endpoint["port"] == "http"
    assert endpoint["path"] in create_app(Settings()).openapi()["paths"]


def test_the_autoscaler_scales_the_deployment_which_has_no_number_of_replicas() -> None:
    spec = OBJECTS["HorizontalPodAutoscaler"]["spec"]
    assert spec["scaleTargetRef"]["name"] == OBJECTS["Deployment"]["metadata"]["name"]
    assert "replicas" not in OBJECTS["Deployment"]["spec"]
    # One may always go, and one is always there.
    assert spec["minReplicas"] > OBJECTS["PodDisruptionBudget"]["spec"]["maxUnavailable"]


def test_the_autoscaler_sees_a_pods_queue_of_all_models_as_a_minutes_mean(tmp_path: Path) -> None:
    [rule] = yaml.safe_load((FOLDER / "prometheus-adapter.yaml").read_text())["rules"]["custom"]
    [metric] = OBJECTS["HorizontalPodAutoscaler"]["spec"]["metrics"]
    assert rule["name"]["as"] == metric["pods"]["metric"]["name"]
    series = rule["seriesQuery"].split("{")[0]
    # As the adapter fills it in.
    query = rule["metricsQuery"].replace("<<.Series>>", series).replace("<<.GroupBy>>", "pod")
    query = query.replace("<<.LabelMatchers>>", 'namespace="images",pod=~"gradless-a|gradless-b"')
    labels = 'namespace="images",job="gradless"'
    cases = {
        "evaluation_interval": "15s",
        "tests": [
            {
                "interval": "15s",
                "input_series": [
                    {"series": f'{series}{{{labels},pod="gradless-a",model="one"}}', "values": "0 40 0 40"},
                    {"series": f'{series}{{{labels},pod="gradless-a",model="two"}}', "values": "5 5 5 5"},
                    {"series": f'{series}{{{labels},pod="gradless-b",model="one"}}', "values": "0 0 0 0"},
                    {"series": f'{series}{{namespace="other",pod="gradless-a",model="one"}}', "values": "9 9 9 9"},
                ],
                "promql_expr_test": [
                    {
                        "expr": query,
                        "eval_time": "45s",
                        "exp_samples": [
                            {"labels": '{pod="gradless-a"}', "value": 25},
                            {"labels": '{pod="gradless-b"}', "value": 0},
                        ],
                    }
                ],
            }
        ],
    }
    path = tmp_path / "adapter.yml"
    path.write_text(yaml.safe_dump(cases))
    done = subprocess.run(["promtool", "test", "rules", path], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


OWN = {
    patch["kind"]: patch
    for name in ("deployment.yaml", "podmonitor.yaml")
    for patch in yaml.safe_load_all((FOLDER / "own-model" / name).read_text())
}
OWN_POD: dict[str, Any] = OWN["Deployment"]["spec"]["template"]["spec"]
MODELS = {each["kind"]: each for each in yaml.safe_load_all((FOLDER / "models.yaml").read_text())}
PAGE = (ROOT / "docs/deployment.md").read_text()


def test_your_own_model_and_its_keys_are_read_from_mounted_volumes(dockerfile: Any) -> None:
    [patch] = OWN_POD["containers"]
    variables = {variable["name"]: variable["value"] for variable in patch["env"]}
    assert patch["name"] == GRADLESS["name"]
    assert not variables.keys() - {f"GRADLESS_{name.upper()}" for name in Settings.model_fields}
    volumes = {volume["name"]: volume for volume in OWN_POD["volumes"]}
    mounts = {mount["mountPath"]: (mount.get("readOnly"), volumes[mount["name"]]) for mount in patch["volumeMounts"]}

    read_only, models = mounts[str(Path(variables["GRADLESS_MODELS"]).parent)]
    assert read_only
    assert models["persistentVolumeClaim"]["claimName"] == MODELS["PersistentVolumeClaim"]["metadata"]["name"]
    keys = Path(variables["GRADLESS_API_KEYS_FILE"])
    read_only, secret = mounts[str(keys.parent)]
    assert read_only
    assert [item["path"] for item in secret["secret"]["items"]] == [keys.name]
    # The model's conversion is written there.
    read_only, cache = mounts[dockerfile.environment("cpu")["GRADLESS_CACHE_FOLDER"]]
    assert (read_only, "emptyDir" in cache) == (None, True)


def test_the_documented_secret_has_the_keys_of_the_pods_and_the_one_of_prometheus(tmp_path: Path) -> None:
    lines = PAGE.split("```sh\nscrape=")[1].split("```")[0].splitlines()
    create = next(line for line in lines if line.startswith("kubectl create secret "))
    script = "\n".join([f"scrape={lines[0]}", lines[1], f'printf %s "{create.split("metrics=")[1]}"'])
    scrape = subprocess.run(["sh", "-ec", script], cwd=tmp_path, capture_output=True, text=True, check=True).stdout
    keys = read_keys(None, tmp_path / "keys")
    assert keys.rights_of(scrape.strip('"')) == {"metrics"}

    [endpoint] = OWN["PodMonitor"]["spec"]["podMetricsEndpoints"]
    [of_base] = OBJECTS["PodMonitor"]["spec"]["podMetricsEndpoints"]
    credentials = endpoint["authorization"]["credentials"]
    assert endpoint == of_base | {"authorization": {"credentials": credentials}}
    [volume] = [volume["secret"] for volume in OWN_POD["volumes"] if "secret" in volume]
    words = shlex.split(create)
    assert words[3:5] == ["generic", volume["secretName"]] == ["generic", credentials["name"]]
    assert words[5:] == [f"--from-file={volume['items'][0]['key']}", f"--from-literal={credentials['key']}=$scrape"]


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("kind", MODELS)
def test_the_volume_of_models_and_the_pod_that_fills_it_match_their_schemas(kind: str, version: str) -> None:
    kubernetes_validate.validate(MODELS[kind], version, strict=True)


def test_the_pod_that_copies_models_writes_to_their_volume_and_gets_no_requests() -> None:
    pod = MODELS["Pod"]
    assert OBJECTS["Service"]["spec"]["selector"].items() - pod["metadata"].get("labels", {}).items()
    [container] = pod["spec"]["containers"]
    assert container["volumeMounts"] == [{"name": "models", "mountPath": "/models"}]
    assert pod["spec"]["securityContext"]["fsGroup"] == pod["spec"]["securityContext"]["runAsGroup"]
    assert f" {pod['metadata']['name']}:/models/my-model" in PAGE


@needs_kubectl
@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("overlay", ["base", "gpu", "own-model"])
def test_the_output_of_kustomize_is_valid_and_has_one_image(overlay: str, version: str) -> None:
    objects = kustomized(overlay)
    assert set(objects) == set(OBJECTS)
    for kind in OF_KUBERNETES:
        kubernetes_validate.validate(objects[kind], version, strict=True)
    [container] = objects["Deployment"]["spec"]["template"]["spec"]["containers"]
    assert container["image"].endswith("-cuda" if overlay == "gpu" else "-cpu")


@needs_kubectl
def test_the_gpu_overlay_adds_one_gpu_and_changes_nothing_else() -> None:
    pod = kustomized("gpu")["Deployment"]["spec"]["template"]["spec"]
    [container] = pod["containers"]
    assert container["resources"]["limits"]["nvidia.com/gpu"] == "1"
    assert pod["tolerations"]
    assert container["securityContext"] == GRADLESS["securityContext"]
    assert container["readinessProbe"] == GRADLESS["readinessProbe"]


def kustomized(overlay: str) -> dict[str, Any]:
    command = ["kubectl", "kustomize", FOLDER / overlay]
    made = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return {document["kind"]: document for document in yaml.safe_load_all(made)}
