"""Who may ask: tokens, rates of peers and clients, classes; and what a wrong configuration is told."""

import hashlib

import msgspec
import pytest

from muster_agent.core.breaker import BreakerSettings
from muster_agent.serving.admission import Admission, BurstExceeded, RateExceeded, TokenRefused, bearer
from muster_agent.serving.call import Priority
from muster_agent.serving.config import (
    ClientConfig,
    Limit,
    ModelConfig,
    QueueTimeouts,
    ServingConfig,
    UpstreamConfig,
    in_window,
    problem,
)

TOKEN = b"sesame-1"
DIGEST = hashlib.sha256(TOKEN).hexdigest()
CLIENT = ClientConfig(name="inspection", token_sha256=DIGEST, rows_per_s=10, burst=20, priority_max="soon")
S = 1_000_000_000


def test_a_token_names_its_client_wherever_it_comes_from() -> None:
    admission = Admission(ServingConfig(clients=(CLIENT,)))

    here, there = admission.caller(TOKEN, "10.0.0.1"), admission.caller(TOKEN, "10.0.0.2")

    assert here is there
    assert here.name == "inspection"


def test_an_unknown_token_is_refused_even_where_none_is_needed() -> None:
    admission = Admission(ServingConfig(clients=(CLIENT,)))

    with pytest.raises(TokenRefused, match="not known"):
        admission.caller(b"sesame-2", "10.0.0.1")


def test_without_a_token_nobody_enters_where_one_is_needed() -> None:
    admission = Admission(ServingConfig(clients=(CLIENT,), require_token=True))

    with pytest.raises(TokenRefused, match="Authorization: Bearer"):
        admission.caller(None, "10.0.0.1")
    assert admission.caller(TOKEN, "10.0.0.1").name == "inspection"


def test_a_client_is_held_to_its_rate_and_told_when_to_come_back() -> None:
    caller = Admission(ServingConfig(clients=(CLIENT,))).caller(TOKEN, "")
    caller.take(20, S)

    with pytest.raises(RateExceeded) as refused:
        caller.take(15, S)

    assert refused.value.retry_after_s == 2
    caller.take(15, S + 3 * S // 2)


def test_more_than_the_burst_in_one_request_is_another_mistake() -> None:
    caller = Admission(ServingConfig(clients=(CLIENT,))).caller(TOKEN, "")

    with pytest.raises(BurstExceeded, match="smaller batches"):
        caller.take(21, S)


def test_each_peer_has_its_own_rate() -> None:
    admission = Admission(ServingConfig(anonymous=Limit(rows_per_s=1, burst=1)))
    admission.caller(None, "10.0.0.1").take(1, S)

    admission.caller(None, "10.0.0.2").take(1, S)

    with pytest.raises(RateExceeded):
        admission.caller(None, "10.0.0.1").take(1, S)


def test_the_peers_that_are_remembered_are_bounded_and_the_longest_unseen_goes() -> None:
    admission = Admission(ServingConfig(anonymous=Limit(rows_per_s=1, burst=1)), peers_max=2)
    first, second = admission.caller(None, "1"), admission.caller(None, "2")
    admission.caller(None, "1")

    admission.caller(None, "3")

    assert admission.caller(None, "1") is first
    assert admission.caller(None, "2") is not second


def test_without_limits_nobody_is_ever_refused() -> None:
    caller = Admission(ServingConfig()).caller(None, "10.0.0.1")

    for _ in range(1000):
        caller.take(1_000_000, 0)

    assert caller.name == "anonymous"


@pytest.mark.parametrize(
    ("asked", "served"),
    [(Priority.NOW, Priority.SOON), (Priority.SOON, Priority.SOON), (Priority.LATER, Priority.LATER)],
)
def test_a_caller_is_served_in_no_better_class_than_its_own(asked: Priority, served: Priority) -> None:
    caller = Admission(ServingConfig(clients=(CLIENT,))).caller(TOKEN, "")

    assert caller.priority(asked) is served


@pytest.mark.parametrize("header", [b"Bearer sesame-1", b"bearer   sesame-1 ", b"BEARER sesame-1"])
def test_a_bearer_token_is_read(header: bytes) -> None:
    assert bearer(header) == TOKEN


@pytest.mark.parametrize(
    "header", [b"", b"Bearer", b"Bearer ", b"Basic c2VzYW1l", b"sesame-1", b"Bearer " + b"x" * 5000]
)
def test_another_authorization_is_refused(header: bytes) -> None:
    with pytest.raises(TokenRefused):
        bearer(header)


def test_no_authorization_is_no_token() -> None:
    assert bearer(None) is None


def test_the_defaults_are_a_configuration() -> None:
    assert problem(ServingConfig()) is None
    assert ServingConfig().model("digits") == ModelConfig()


def test_the_whole_section_is_read() -> None:
    document: dict[str, object] = {
        "queue_max": 16,
        "queue_timeout_ms": {"later": 60_000},
        "clients": [{"name": "inspection", "token_sha256": DIGEST, "rows_per_s": 200, "priority_max": "soon"}],
        "breaker": {"calls_min": 5},
        "later_window": "22:00-06:00",
        "upstream": {"url": "https://inference.example:8443/edge", "token": "t"},
        "models": {"digits": {"priority": "soon", "instances_max": 2, "pinned": True}},
    }

    config = msgspec.convert(document, ServingConfig)

    assert problem(config) is None
    assert config.model("digits").pinned
    assert config.clients[0].priority_max == "soon"


@pytest.mark.parametrize(
    ("config", "field"),
    [
        (ServingConfig(queue_max=0), "serving.queue_max"),
        (ServingConfig(timeout_s=float("nan")), "serving.timeout_s"),
        (ServingConfig(queue_timeout_ms=QueueTimeouts(soon=-1)), "serving.queue_timeout_ms.soon"),
        (ServingConfig(require_token=True), "serving.require_token"),
        (ServingConfig(clients=(CLIENT, CLIENT)), "serving.clients: 'inspection'"),
        (ServingConfig(clients=(ClientConfig(name="a", token_sha256="sesame"),)), "SHA-256"),
        (ServingConfig(clients=(ClientConfig(name="A b", token_sha256=DIGEST),)), "not a name"),
        (ServingConfig(anonymous=Limit(rows_per_s=-1)), "serving.anonymous.rows_per_s"),
        (ServingConfig(anonymous=Limit(rows_per_s=float("inf"))), "serving.anonymous.rows_per_s"),
        (ServingConfig(breaker=BreakerSettings(share_max=0.0)), "serving.breaker.share_max"),
        (ServingConfig(breaker=BreakerSettings(open_s=5, open_s_max=1)), "serving.breaker.open_s_max"),
        (ServingConfig(cache_bytes=-1), "serving.cache_bytes"),
        (ServingConfig(sequences_max=0), "serving.sequences_max"),
        (ServingConfig(later_window="22-06"), "serving.later_window"),
        (ServingConfig(later_window="24:00-06:00"), "serving.later_window"),
        (ServingConfig(upstream=UpstreamConfig(url="ftp://host")), "serving.upstream.url"),
        (ServingConfig(upstream=UpstreamConfig(url="http://host:99999")), "serving.upstream.url"),
        (ServingConfig(upstream=UpstreamConfig(url="http://me:secret@host")), "serving.upstream.url"),
        (ServingConfig(upstream=UpstreamConfig(url="http://host/a b")), "serving.upstream.url"),
        (ServingConfig(upstream=UpstreamConfig(url="http://host", token="a\r\nb")), "serving.upstream.token"),
        (ServingConfig(upstream=UpstreamConfig(url="http://host", in_flight=0)), "serving.upstream.in_flight"),
        (ServingConfig(models={"Digits!": ModelConfig()}), "serving.models"),
        (ServingConfig(models={"digits": ModelConfig(cpu_share=1.5)}), "serving.models.digits.cpu_share"),
    ],
)
def test_a_wrong_field_is_named(config: ServingConfig, field: str) -> None:
    found = problem(config)

    assert found is not None
    assert field in found


@pytest.mark.parametrize(
    ("window", "minute", "inside"),
    [
        ("", 0, True),
        ("08:00-18:00", 8 * 60, True),
        ("08:00-18:00", 18 * 60, False),
        ("22:00-06:00", 23 * 60, True),
        ("22:00-06:00", 5 * 60 + 59, True),
        ("22:00-06:00", 6 * 60, False),
        ("06:00-06:00", 0, True),
        ("6-7", 0, None),
    ],
)
def test_a_window_may_go_over_midnight(window: str, minute: int, inside: bool | None) -> None:
    assert in_window(window, minute) is inside
