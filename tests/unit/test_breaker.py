"""The circuit breaker: when it opens, how it finds back, and that the cheap form is the pure machine."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from muster_agent.core.breaker import (
    Abandoned,
    Asked,
    Breaker,
    BreakerSettings,
    Closed,
    Event,
    Failed,
    HalfOpen,
    Open,
    Ruling,
    State,
    Succeeded,
    advance,
)

S = 1_000_000_000
SETTINGS = BreakerSettings(window_s=8.0, calls_min=4, share_max=0.5, open_s=1.0, open_s_max=4.0, probes=2)
SMALL = BreakerSettings(window_s=0.8, calls_min=2, share_max=0.4, open_s=0.2, open_s_max=1.0, probes=2)


def opened(at_ns: int = 0) -> Breaker:
    breaker = Breaker("digits", SETTINGS)
    for _ in range(SETTINGS.calls_min):
        breaker.failed(at_ns, at_ns)
    assert isinstance(breaker.state, Open)
    return breaker


def test_a_few_failures_prove_nothing() -> None:
    breaker = Breaker("digits", SETTINGS)

    for _ in range(SETTINGS.calls_min - 1):
        breaker.failed(0, 0)

    assert breaker.allows(0)


def test_it_opens_at_its_share_of_failures() -> None:
    breaker = Breaker("digits", SETTINGS)
    for _ in range(3):
        breaker.succeeded(0, 0)
    for _ in range(2):
        breaker.failed(0, 0)
    assert breaker.allows(0), "two of five"

    breaker.failed(0, 0)

    assert not breaker.allows(0), "three of six"
    assert breaker.refusal(0).failed_share == 0.5
    assert breaker.refusal(0).retry_after_s == 1


def test_failures_that_left_the_window_do_not_count() -> None:
    breaker = Breaker("digits", SETTINGS)
    for _ in range(3):
        breaker.failed(0, 0)

    breaker.failed(9 * S, 9 * S)

    assert breaker.allows(9 * S)


def test_an_open_breaker_lets_nothing_through_until_its_time_is_over_and_then_only_its_probes() -> None:
    breaker = opened()

    assert not breaker.allows(S - 1)
    assert [breaker.allows(S) for _ in range(4)] == [True, True, False, False]


def test_it_closes_when_every_probe_succeeded() -> None:
    breaker = opened()
    for _ in range(SETTINGS.probes):
        assert breaker.allows(S)

    breaker.succeeded(S, S + 1)
    assert not breaker.allows(S + 1), "one probe proves nothing"
    breaker.succeeded(S, S + 2)

    assert isinstance(breaker.state, Closed)
    assert breaker.allows(S + 2)


def test_each_failed_probe_doubles_the_time_up_to_its_cap() -> None:
    breaker, now_ns = opened(), 0
    waits_s = []

    for _ in range(5):
        at = breaker.state
        assert isinstance(at, Open)
        waits_s.append((at.until_ns - now_ns) / S)
        now_ns = at.until_ns
        assert breaker.allows(now_ns)
        breaker.failed(now_ns, now_ns)

    assert waits_s == [1.0, 2.0, 4.0, 4.0, 4.0]


def test_one_that_closes_and_fails_again_at_once_has_learned_nothing_new() -> None:
    breaker = opened()
    for _ in range(SETTINGS.probes):
        assert breaker.allows(S)
        breaker.succeeded(S, S)

    for _ in range(SETTINGS.calls_min):
        breaker.failed(S, S + 1)

    at = breaker.state
    assert isinstance(at, Open)
    assert at.until_ns == S + 1 + 2 * S


def test_one_that_stayed_closed_for_long_begins_anew() -> None:
    breaker = opened()
    for _ in range(SETTINGS.probes):
        assert breaker.allows(S)
        breaker.succeeded(S, S)

    for _ in range(SETTINGS.calls_min):
        breaker.failed(60 * S, 60 * S)

    at = breaker.state
    assert isinstance(at, Open)
    assert at.until_ns == 61 * S


def test_a_late_failure_of_a_call_from_before_it_opened_does_not_fail_the_probe() -> None:
    breaker = opened()
    assert breaker.allows(S)

    breaker.failed(S - 1, S + 1)

    assert isinstance(breaker.state, HalfOpen)


def test_a_probe_that_never_ran_is_given_back() -> None:
    breaker = opened()
    assert [breaker.allows(S) for _ in range(3)] == [True, True, False]

    breaker.abandoned(S, S)

    assert breaker.allows(S)


def test_probes_that_are_lost_are_replaced_in_time() -> None:
    breaker = opened()
    assert [breaker.allows(S) for _ in range(3)] == [True, True, False]

    assert not breaker.allows(2 * S - 1)
    assert breaker.allows(2 * S)


def test_without_a_minimum_of_calls_it_never_opens() -> None:
    breaker = Breaker("digits", BreakerSettings(calls_min=0))

    for _ in range(1000):
        breaker.failed(0, 0)

    assert breaker.allows(0)


STEPS = st.lists(
    st.tuples(st.sampled_from(["ask", "pass", "fail", "leave"]), st.integers(0, S // 4), st.integers(0, S)), max_size=80
)
"""(what happens, nanoseconds since the step before, how long ago the call began)."""


def event_of(step: str, began_ns: int) -> Event:
    match step:
        case "pass":
            return Succeeded(began_ns)
        case "fail":
            return Failed(began_ns)
        case "leave":
            return Abandoned(began_ns)
        case _:
            return Asked()


@given(STEPS)
@settings(max_examples=300, deadline=None)
def test_the_breaker_is_the_machine_whatever_happens(steps: list[tuple[str, int, int]]) -> None:
    breaker, state, now_ns = Breaker("digits", SMALL), Closed(), 0
    pure: State = state

    for step, gap_ns, ago_ns in steps:
        now_ns += gap_ns
        began_ns = max(0, now_ns - ago_ns)
        pure, ruling = advance(pure, event_of(step, began_ns), now_ns, SMALL)
        match step:
            case "ask":
                assert breaker.allows(now_ns) == (ruling is Ruling.ALLOWED)
            case "pass":
                breaker.succeeded(began_ns, now_ns)
            case "fail":
                breaker.failed(began_ns, now_ns)
            case _:
                breaker.abandoned(began_ns, now_ns)

    assert breaker.state == pure


@given(STEPS)
@settings(max_examples=300, deadline=None)
def test_it_never_stays_shut(steps: list[tuple[str, int, int]]) -> None:
    state: State = Closed()
    now_ns = 0
    for step, gap_ns, ago_ns in steps:
        now_ns += gap_ns
        state, _ = advance(state, event_of(step, max(0, now_ns - ago_ns)), now_ns, SMALL)

    _, ruling = advance(state, Asked(), now_ns + int(SMALL.open_s_max * S), SMALL)

    assert ruling is Ruling.ALLOWED


@given(st.lists(st.booleans(), max_size=60))
@settings(deadline=None)
def test_it_opens_only_when_the_window_says_so(outcomes: list[bool]) -> None:
    state: State = Closed()
    failures = 0

    for ended, good in enumerate(outcomes, start=1):
        state, _ = advance(state, Succeeded(0) if good else Failed(0), 0, SETTINGS)
        failures += not good
        expected = not good and ended >= SETTINGS.calls_min and failures / ended >= SETTINGS.share_max
        assert isinstance(state, Open) == expected
        if expected:
            break


@pytest.mark.parametrize("began_ns", [0, S])
def test_a_refusal_says_when_to_come_back(began_ns: int) -> None:
    breaker = opened(began_ns)

    error = breaker.refusal(began_ns)

    assert error.retry_after_s == 1
    assert "digits failed in 100% of its latest calls" in str(error)
