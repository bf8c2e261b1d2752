"""A policy is refused when it is written, not when it is too late."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from muster_controller.core.policy import WAVES_MAX, Policy, PolicyInvalid, check, parse_policy, wave_sizes


def test_the_default_policy_is_valid() -> None:
    check(Policy())


def test_an_empty_policy_is_the_default() -> None:
    assert parse_policy(b"{}") == Policy()


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"[]",
        b"not json",
        b'{"alpha": "five"}',
        b'{"wavez": [5]}',
        b'{"waves": [0]}',
        b'{"waves": [-3]}',
        b'{"waves": ["0%"]}',
        b'{"waves": ["101%"]}',
        b'{"waves": ["25"]}',
        b'{"waves": ["25 %"]}',
        b'{"waves": [2.5]}',
        b'{"alpha": 0}',
        b'{"alpha": 1}',
        b'{"alpha": null}',
        b'{"failure_objective": 0}',
        b'{"success_required": 1.01}',
        b'{"tolerance": 0.5}',
        b'{"controls_per_device": -1}',
        b'{"window_s": 0}',
        b'{"window_s": 100, "window_max_s": 50}',
        b'{"deadline_s": 900, "window_max_s": 900}',
        b'{"on_abort": "maybe"}',
        b'{"on_error": "error > 5"}',
    ],
)
def test_a_policy_that_cannot_be_evaluated_is_refused(raw: bytes) -> None:
    with pytest.raises(PolicyInvalid):
        parse_policy(raw)


def test_not_a_number_is_no_threshold() -> None:
    with pytest.raises(PolicyInvalid):
        check(Policy(alpha=float("nan")))


def test_too_many_waves_are_refused() -> None:
    with pytest.raises(PolicyInvalid, match="waves"):
        check(Policy(waves=(1,) * (WAVES_MAX + 1)))


def test_the_refusal_names_the_field_and_its_bounds() -> None:
    with pytest.raises(PolicyInvalid, match=r"alpha is 0\.9; it must be from 1e-06 to 0\.5"):
        check(Policy(alpha=0.9))


def test_shares_are_of_the_whole_fleet_and_what_is_left_is_the_last_wave() -> None:
    assert wave_sizes(Policy(waves=(5, "25%")), 100) == (5, 25, 70)


def test_a_small_fleet_gets_fewer_waves() -> None:
    assert wave_sizes(Policy(waves=(5, "25%")), 3) == (3,)


def test_a_share_is_at_least_one_device() -> None:
    assert wave_sizes(Policy(waves=("1%",)), 10) == (1, 9)


@given(
    st.lists(st.one_of(st.integers(1, 500), st.integers(1, 100).map(lambda share: f"{share}%")), max_size=8),
    st.integers(1, 5000),
)
def test_waves_are_never_empty_and_add_up_to_the_fleet(waves: list[int | str], devices: int) -> None:
    sizes = wave_sizes(Policy(waves=tuple(waves)), devices)

    assert sum(sizes) == devices
    assert all(size > 0 for size in sizes)
