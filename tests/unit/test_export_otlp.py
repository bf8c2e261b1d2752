"""Metrics over OTLP: what a collector reads by the protocol's own definition, and one that comes and goes."""

import math
from collections.abc import Iterator

import httpx
import msgspec
import pytest
from google.protobuf import json_format
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
from opentelemetry.proto.metrics.v1.metrics_pb2 import AggregationTemporality, Metric

from harness.collector import MetricsCollector
from muster_controller.errors import ServerUnavailable
from muster_controller.export.families import Family, Kind, family
from muster_controller.export.otlp import Pusher, check_url, document

FAMILIES = [
    family("muster_requests_total", Kind.COUNTER, "Requests", [(7.0, {"model": "digits"}), (1.0, {"model": "faces"})]),
    family("muster_class_share_low", Kind.GAUGE, "Share", [(0.25, {"class": "cat"})]),
    family("muster_nothing", Kind.GAUGE, "Nothing is known", []),
]
RESOURCE = {"service.name": "muster-controller", "service.instance.id": "plant"}


@pytest.fixture
def collector() -> Iterator[MetricsCollector]:
    running = MetricsCollector()
    yield running
    running.close()


def parsed(families: list[Family]) -> dict[str, Metric]:
    raw = msgspec.json.encode(document(families, RESOURCE, "0.1.0", 1000.0, 1060.5))
    request = json_format.Parse(raw, ExportMetricsServiceRequest())
    [scope] = request.resource_metrics[0].scope_metrics
    return {metric.name: metric for metric in scope.metrics}


def test_a_counter_is_a_cumulative_sum_since_the_beginning() -> None:
    metric = parsed(FAMILIES)["muster_requests_total"]

    assert metric.sum.is_monotonic
    assert metric.sum.aggregation_temporality == AggregationTemporality.AGGREGATION_TEMPORALITY_CUMULATIVE
    assert [point.as_double for point in metric.sum.data_points] == [7.0, 1.0]
    assert metric.sum.data_points[0].attributes[0].value.string_value == "digits"
    assert metric.sum.data_points[0].start_time_unix_nano == 1_000_000_000_000
    assert metric.sum.data_points[0].time_unix_nano == 1_060_500_000_000


def test_a_gauge_has_its_unit_and_what_is_unknown_is_not_sent() -> None:
    found = parsed(FAMILIES)

    assert set(found) == {"muster_requests_total", "muster_class_share_low"}
    assert (found["muster_class_share_low"].gauge.data_points[0].as_double, found["muster_class_share_low"].unit) == (
        0.25,
        "1",
    )


@pytest.mark.parametrize("value", [math.inf, -math.inf, math.nan])
def test_what_json_has_no_number_for_is_not_sent_as_one(value: float) -> None:
    found = parsed([family("muster_odd", Kind.GAUGE, "Odd", [(value, {}), (1.0, {"a": "b"})])])

    assert [point.as_double for point in found["muster_odd"].gauge.data_points] == [1.0]


def test_the_resource_says_who_sends() -> None:
    found = document(FAMILIES, RESOURCE, "0.1.0", 0.0, 1.0)["resourceMetrics"][0]

    said = {each["key"]: each["value"]["stringValue"] for each in found["resource"]["attributes"]}
    assert said == RESOURCE


@pytest.mark.parametrize(
    ("url", "target"),
    [
        ("http://127.0.0.1:4318", "http://127.0.0.1:4318/v1/metrics"),
        ("https://collect.example.org/otlp/", "https://collect.example.org/otlp/v1/metrics"),
        ("http://127.0.0.1:4318/v1/metrics", "http://127.0.0.1:4318/v1/metrics"),
    ],
)
def test_the_path_is_added_where_it_lacks(url: str, target: str) -> None:
    assert check_url(url) == target


@pytest.mark.parametrize(
    "url", ["", "127.0.0.1:4318", "ftp://a/b", "http://me:secret@host", "http://", "http://h/?a=b"]
)
def test_what_is_no_url_of_a_collector_is_refused_without_repeating_it(url: str) -> None:
    with pytest.raises(ServerUnavailable) as refused:
        check_url(url)

    assert "secret" not in str(refused.value)


def test_a_collector_that_fails_gets_the_next_push_all_the_same(collector: MetricsCollector) -> None:
    collector.status = 503
    pusher = Pusher(collector.url, lambda: FAMILIES, RESOURCE, "0.1.0", lambda: 5.0, every_s=0.01)

    pusher.start()
    refused = [collector.next() for _ in range(2)]
    collector.status = 200
    taken = [collector.next() for _ in range(2)]
    pusher.stop()

    assert collector.paths == {"/v1/metrics"}
    assert [bool(each.resource_metrics) for each in (*refused, *taken)] == [True] * 4


def test_a_collector_that_is_not_there_is_nobodys_trouble() -> None:
    gone = MetricsCollector()
    gone.close()
    pusher = Pusher(gone.url, lambda: FAMILIES, RESOURCE, "0.1.0", lambda: 5.0)

    with httpx.Client() as http, pytest.raises(httpx.HTTPError):
        pusher.push(http)
    pusher.start()
    pusher.stop()
