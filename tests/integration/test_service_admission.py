"""Who may ask over HTTP, how much and how urgently: tokens, rates, bursts, classes, and web pages, which never may."""

import hashlib

import pytest

from harness.asking import Scripted, program, scripted, serving
from harness.endpoint import MODEL
from muster_agent.serving.config import ClientConfig, Limit, PriorityName, QueueTimeouts, ServingConfig

ROW = (1.0, 2.0, 3.0)
TOKEN = "inspection-token"
BEARER = f"Bearer {TOKEN}"


def inspection(*, rows_per_s: float = 0.0, burst: int = 0, priority_max: PriorityName = "now") -> ClientConfig:
    return ClientConfig(
        name="inspection",
        token_sha256=hashlib.sha256(TOKEN.encode()).hexdigest(),
        rows_per_s=rows_per_s,
        burst=burst,
        priority_max=priority_max,
    )


def test_without_the_right_token_nobody_is_served_where_one_is_needed() -> None:
    config = ServingConfig(clients=(inspection(),), require_token=True)
    engine = Scripted()

    with serving(scripted(engine), config=config) as endpoint, program(endpoint) as asking:
        without = asking.infer()
        wrong = asking.infer(Authorization="Bearer guessed")
        right = asking.infer(Authorization=BEARER)

    assert without.status == 401
    assert "Bearer" in without.headers["www-authenticate"]
    assert wrong.status == 401
    assert right.data == list(ROW)
    assert engine.calls == 1


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("POST", f"/v1/models/{MODEL}/predict"),
        ("POST", f"/v1/models/{MODEL}/feedback"),
        ("POST", f"/v1/models/{MODEL}/trial"),
        ("DELETE", f"/v1/models/{MODEL}/trial"),
        ("POST", f"/v2/repository/models/{MODEL}/unload"),
        ("POST", f"/v2/repository/models/{MODEL}/load"),
        ("POST", "/v2/systemsharedmemory/region/r/register"),
    ],
)
def test_whoever_may_not_ask_may_not_change_anything_either(method: str, path: str) -> None:
    config = ServingConfig(clients=(inspection(),), require_token=True)

    with serving(scripted(Scripted()), config=config) as endpoint, program(endpoint) as asking:
        without = asking.ask(method, path, {})
        right = asking.ask(method, path, {}, Authorization=BEARER)

    assert without.status == 401
    assert right.status != 401


@pytest.mark.parametrize("path", ["/v2/health/live", "/v2/health/ready", "/metrics", f"/v2/models/{MODEL}"])
def test_health_and_metrics_need_no_token(path: str) -> None:
    config = ServingConfig(clients=(inspection(),), require_token=True)

    with serving(scripted(Scripted()), config=config) as endpoint, program(endpoint) as asking:
        answer = asking.ask("GET", path)

    assert answer.status == 200


def test_rows_beyond_the_rate_are_refused_with_the_time_to_come_again() -> None:
    config = ServingConfig(clients=(inspection(rows_per_s=0.1, burst=3),))
    engine = Scripted()

    with serving(scripted(engine), config=config) as endpoint, program(endpoint) as asking:
        first = asking.infer(ROW, ROW, Authorization=BEARER)
        too_many = asking.infer(ROW, ROW, Authorization=BEARER)
        fitting = asking.infer(ROW, Authorization=BEARER)
        other = asking.infer(ROW, ROW, ROW)

    assert first.status == 200
    assert too_many.status == 429
    assert 1 <= int(too_many.headers["retry-after"]) <= 10
    assert fitting.status == 200
    assert other.status == 200
    assert sum(len(x) for x in engine.seen) == 6


def test_a_batch_larger_than_the_burst_is_told_to_be_smaller() -> None:
    config = ServingConfig(anonymous=Limit(rows_per_s=1000.0, burst=2))

    with serving(scripted(Scripted()), config=config) as endpoint, program(endpoint) as asking:
        large = asking.infer(ROW, ROW, ROW)
        small = asking.infer(ROW, ROW)

    assert large.status == 400
    assert "smaller" in large.error
    assert small.status == 200


def test_programs_of_one_address_share_the_rate_of_those_without_a_token() -> None:
    config = ServingConfig(anonymous=Limit(rows_per_s=0.1, burst=2))

    with serving(scripted(Scripted()), config=config) as endpoint, program(endpoint) as one, program(endpoint) as two:
        taken = [one.infer().status, two.infer().status]
        refused = two.infer()

    assert taken == [200, 200]
    assert refused.status == 429


def test_a_client_is_served_in_its_best_class_whatever_it_asks_for() -> None:
    config = ServingConfig(clients=(inspection(priority_max="later"),), queue_timeout_ms=QueueTimeouts(later=50))
    engine = Scripted()

    with serving(scripted(engine), config=config) as endpoint, program(endpoint) as asking:
        endpoint.table.open_later(False)  # What runs now is in another class.
        limited = asking.infer(Authorization=BEARER, Muster_Priority="now")
        by_parameter = asking.infer(Authorization=BEARER, parameters={"priority": 1})
        unlimited = asking.infer(Muster_Priority="now")

    assert (limited.status, by_parameter.status, unlimited.status) == (503, 503, 200)
    assert engine.calls == 1


def test_a_web_page_is_refused_everything() -> None:
    engine = Scripted()

    with serving(scripted(engine)) as endpoint, program(endpoint) as asking:
        infer = asking.infer(Origin="https://example.org")
        look = asking.ask("GET", "/v2/health/live", Origin="https://example.org")
        itself = asking.infer()

    assert (infer.status, look.status, itself.status) == (403, 403, 200)
    assert engine.calls == 1
