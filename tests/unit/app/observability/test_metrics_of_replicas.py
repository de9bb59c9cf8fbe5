"""One scrape of several replicas: whole families, each series with its replica, in both formats."""

from __future__ import annotations

import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families as openmetrics_families
from prometheus_client.parser import text_string_to_metric_families

from app.observability.metrics import Metrics
from app.ray_serve.exposition import merged


def exposition(requests: int, accept: str = "") -> str:
    metrics = Metrics()
    for number in range(requests):
        metrics.request_done("/v1/classify", "POST", 200, 0.01, f"id{number}")
    return metrics.exposition(accept)[0].decode()


def test_series_keep_their_values_and_say_whose_they_are() -> None:
    families = text_string_to_metric_families(merged({"one": exposition(3), "two": exposition(5)}))

    samples = [sample for family in families for sample in family.samples]
    counted = {sample.labels["replica"]: sample.value for sample in samples if sample.name == "gradless_requests_total"}
    assert counted == {"one": 3, "two": 5}
    assert {sample.labels["replica"] for sample in samples} == {"one", "two"}


def test_nothing_is_said_twice_of_a_family_and_none_is_left_out() -> None:
    alone = exposition(1)
    together = merged({"one": alone, "two": exposition(2)})

    assert [line for line in together.splitlines() if line.startswith("#")] == [
        line for line in alone.splitlines() if line.startswith("#")
    ]
    # A family's series follow one another; the parser would take them for two families else.
    names = [family.name for family in text_string_to_metric_families(together)]
    assert len(names) == len(set(names))


def test_openmetrics_stays_openmetrics_with_exemplars_and_one_end() -> None:
    accept = "application/openmetrics-text; version=1.0.0"
    together = merged({"one": exposition(1, accept), "two": exposition(1, accept)})

    exemplars = [
        sample.exemplar.labels["request_id"]
        for family in openmetrics_families(together)
        for sample in family.samples
        if sample.exemplar
    ]
    assert exemplars == ["id0", "id0"]
    assert together.count("# EOF") == 1


@pytest.mark.parametrize(
    ("line", "labelled"),
    [
        ("a 1.0\n", 'a{replica="r"} 1.0\n'),
        ('a{b="c d{"} 1.0\n', 'a{replica="r",b="c d{"} 1.0\n'),
        ('a 1.0 # {id="x"} 2 3\n', 'a{replica="r"} 1.0 # {id="x"} 2 3\n'),
    ],
)
def test_a_series_is_labelled_behind_its_name(line: str, labelled: str) -> None:
    head = "# HELP a A.\n# TYPE a gauge\n"

    assert merged({"r": head + line}) == head + labelled
