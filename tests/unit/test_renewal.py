"""When a device asks for its next certificate."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from muster_agent.core.renewal import (
    AWAY_GAP_S,
    AWAY_S,
    RETRY_MAX_S,
    RETRY_MIN_S,
    START_SPREAD_S,
    Declined,
    Failed,
    Lease,
    Renewal,
    away,
    begin,
    connected,
    due,
    granted,
    next_at,
    not_granted,
)

DAY = 86400.0
LEASE = Lease("a", granted_at=0.0, renew_at=3.5 * DAY, expires_at=7 * DAY)
NEXT = Lease("b", granted_at=3.6 * DAY, renew_at=7.1 * DAY, expires_at=10.6 * DAY)
draws = st.floats(0.0, 1.0)


def test_a_fresh_certificate_is_renewed_after_half_of_its_life_and_a_fleet_does_not_do_it_at_once() -> None:
    first, last = begin(LEASE, 1.0, 0.0), begin(LEASE, 1.0, 1.0)

    assert not due(first, 3.5 * DAY - 1)
    assert due(first, 3.5 * DAY)
    assert last.ask_at == pytest.approx(4.2 * DAY)


def test_a_device_that_was_off_for_months_asks_within_seconds() -> None:
    at = begin(LEASE, 300 * DAY, 1.0)

    assert at.ask_at == 300 * DAY + START_SPREAD_S


@given(draw=draws, now=st.floats(0.0, 400 * DAY), renew_at=st.floats(-1e12, 1e12))
def test_it_always_asks_before_the_certificate_is_over_or_at_once(draw: float, now: float, renew_at: float) -> None:
    at = begin(Lease("a", 0.0, renew_at, 7 * DAY), now, draw)

    assert at.ask_at is not None
    assert now < at.ask_at < 7 * DAY or now <= at.ask_at <= now + START_SPREAD_S


@given(draw=draws)
def test_after_a_renewal_the_link_comes_again_before_the_old_certificate_is_over(draw: float) -> None:
    at = granted(begin(LEASE, 0.0, 0.0), NEXT, 3.6 * DAY, draw)

    assert at.reconnect_at is not None
    assert 3.6 * DAY <= at.reconnect_at <= 5.3 * DAY + 1
    assert next_at(at) == at.reconnect_at
    assert connected(at).reconnect_at is None


def test_after_a_renewal_of_a_certificate_that_was_over_the_link_comes_again_at_once() -> None:
    at = granted(begin(LEASE, 9 * DAY, 0.0), NEXT, 9 * DAY, 1.0)

    assert at.reconnect_at == 9 * DAY


def test_a_controller_that_grants_what_is_over_already_is_not_asked_in_a_loop() -> None:
    at = granted(begin(LEASE, 0.0, 0.0), Lease("b", 0.0, 1.0, 2.0), 100 * DAY, 0.0)

    assert at.ask_at is not None
    assert at.ask_at >= 100 * DAY + RETRY_MIN_S


@given(draw=draws, times=st.integers(0, 200))
def test_without_an_answer_it_goes_on_asking_ever_less_often_and_for_ever(draw: float, times: int) -> None:
    at, now = begin(LEASE, 4 * DAY, draw), 4 * DAY
    for _ in range(times + 1):
        at = not_granted(at, Failed("no route"), now, draw)
        assert at.ask_at is not None
        assert RETRY_MIN_S / 2 <= at.ask_at - now <= RETRY_MIN_S / 2 + RETRY_MAX_S
        now = at.ask_at

    assert at.problem == "no route"
    assert at.vain == times + 1


def test_a_fleet_without_its_controller_does_not_come_back_in_step() -> None:
    at = begin(LEASE, 4 * DAY, 0.0)
    waits = {not_granted(at, Failed("away"), 4 * DAY, draw).ask_at for draw in (0.0, 0.3, 0.9)}

    assert len(waits) == 3


def test_a_revoked_device_asks_no_more_and_says_why() -> None:
    at = not_granted(begin(LEASE, 0.0, 0.0), Declined("revoked", "revoked by ops"), 4 * DAY, 0.5)

    assert at.ask_at is None
    assert not due(at, 1e12)
    assert next_at(at) is None
    assert away(at, 30 * DAY, 34 * DAY) == at
    assert at.problem == "revoked by ops"


def test_a_refusal_that_people_must_mend_is_asked_again_after_hours() -> None:
    at = not_granted(begin(LEASE, 0.0, 0.0), Declined("device", "another key"), 4 * DAY, 0.0)

    assert at.ask_at == 4 * DAY + 3 * 3600


def test_a_busy_controller_is_asked_again_like_one_that_is_away() -> None:
    at = begin(LEASE, 0.0, 0.0)

    busy = not_granted(at, Declined("busy", "later"), 4 * DAY, 0.5)

    assert busy.ask_at == not_granted(at, Failed("later"), 4 * DAY, 0.5).ask_at


def test_a_controller_says_how_long_to_wait_within_reason() -> None:
    at = begin(LEASE, 0.0, 0.0)

    assert not_granted(at, Declined("waiting", "", retry_s=120.0), 0.0, 0.0).ask_at == 120.0
    assert not_granted(at, Declined("waiting", "", retry_s=0.0), 0.0, 0.0).ask_at == RETRY_MIN_S
    assert not_granted(at, Declined("waiting", "", retry_s=1e9), 0.0, 0.0).ask_at == 6 * 3600.0


def test_a_problem_is_over_with_the_next_grant() -> None:
    at = granted(not_granted(begin(LEASE, 0.0, 0.0), Failed("away"), 4 * DAY, 0.5), NEXT, 4 * DAY, 0.5)

    assert at.problem == ""
    assert at.vain == 0


def test_a_device_that_the_broker_does_not_let_in_asks_though_its_clock_says_that_all_is_well() -> None:
    at = begin(LEASE, DAY, 0.0)

    assert not due(away(at, AWAY_S - 1, DAY), DAY)
    assert due(away(at, AWAY_S, DAY), DAY)


def test_a_device_without_a_broker_does_not_ask_all_the_time() -> None:
    at: Renewal = not_granted(begin(LEASE, DAY, 0.0), Declined("device", "no"), DAY, 1.0)

    at = away(at, AWAY_S, DAY + 60)

    assert at.ask_at == DAY + AWAY_GAP_S
