"""merge_expositions: one exposition of several replicas, with complete families, in both formats."""

from __future__ import annotations

from prometheus_client.openmetrics.parser import text_string_to_metric_families as openmetrics_families
from prometheus_client.parser import text_string_to_metric_families as prometheus_families

from app.observability.metrics import Metrics, merge_expositions

OPENMETRICS = "application/openmetrics-text; version=1.0.0"


def exposition(requests: int, accept: str = "") -> str:
    metrics = Metrics()
    metrics.model_served('a "model"\\')
    for number in range(requests):
        metrics.request_done("/v1/classify", "POST", 200, 0.01, f"id{number}")
    return metrics.exposition(accept)[0].decode()


def merged(expositions: dict[str, str], accept: str = "") -> str:
    return merge_expositions(expositions, accept, label="replica")[0].decode()


def test_each_series_keeps_its_value_and_names_its_replica() -> None:
    families = prometheus_families(merged({"one": exposition(3), "two": exposition(5)}))

    samples = [sample for family in families for sample in family.samples]
    counted = {sample.labels["replica"]: sample.value for sample in samples if sample.name == "gradless_requests_total"}
    assert counted == {"one": 3, "two": 5}
    assert {sample.labels["replica"] for sample in samples} == {"one", "two"}


def test_a_merged_exposition_of_one_replica_differs_from_its_own_by_the_label_alone() -> None:
    alone = exposition(2)
    unlabelled = merged({"one": alone})
    for label in ('{replica="one"}', ',replica="one"', 'replica="one",'):
        unlabelled = unlabelled.replace(label, "")

    assert unlabelled == alone


def test_a_merged_exposition_describes_each_family_once() -> None:
    alone = exposition(1)
    together = merged({"one": alone, "two": exposition(2)})

    descriptions = [line for line in together.splitlines() if line.startswith("#")]
    assert descriptions == [line for line in alone.splitlines() if line.startswith("#")]
    # The parser splits a family whose series are not consecutive.
    names = [family.name for family in prometheus_families(together)]
    assert len(names) == len(set(names))


def test_a_merged_openmetrics_exposition_keeps_exemplars_and_ends_once() -> None:
    together = merged({name: exposition(1, OPENMETRICS) for name in ("one", "two")}, OPENMETRICS)

    exemplars = [
        sample.exemplar.labels["request_id"]
        for family in openmetrics_families(together)
        for sample in family.samples
        if sample.exemplar
    ]
    assert exemplars == ["id0", "id0"]
    assert together.count("# EOF") == 1
