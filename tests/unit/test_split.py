"""The split between a release and its candidate: sticky, fair, and growing without moving anybody back."""

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from muster_agent.core.split import Mode, Split, chosen, position
from muster_shared.ids import Sha256

CANDIDATE, OTHER = Sha256("ab" * 32), Sha256("cd" * 32)


def never() -> float:
    raise AssertionError("a key needs no randomness")


def split(share: float, candidate: Sha256 = CANDIDATE) -> Split:
    return Split(Mode.CANARY, candidate, share)


@given(st.text(min_size=1), st.floats(0, 1), st.floats(0, 1))
@settings(deadline=None)
def test_a_key_that_has_the_candidate_keeps_it_when_the_share_grows(key: str, one: float, other: float) -> None:
    smaller, larger = sorted((one, other))

    assert chosen(split(smaller), key, never) <= chosen(split(larger), key, never)


@given(st.text(min_size=1))
@settings(deadline=None)
def test_everybody_and_nobody_are_shares_too(key: str) -> None:
    assert chosen(split(1.0), key, never)
    assert not chosen(split(0.0), key, never)
    assert 0 <= position(CANDIDATE, key) < 1


@pytest.mark.parametrize("share", [0.01, 0.1, 0.5])
def test_of_many_keys_the_share_goes_to_the_candidate(share: float) -> None:
    keys = [f"camera-{number}" for number in range(20_000)]

    taken = sum(chosen(split(share), key, never) for key in keys)

    assert taken / len(keys) == pytest.approx(share, abs=4 * (share * (1 - share) / len(keys)) ** 0.5)


def test_another_candidate_is_tried_by_others() -> None:
    keys = [f"camera-{number}" for number in range(20_000)]

    both = sum(chosen(split(0.1), key, never) and chosen(split(0.1, OTHER), key, never) for key in keys)

    assert both / len(keys) == pytest.approx(0.01, abs=0.004)


def test_without_a_key_it_is_drawn() -> None:
    draw = random.Random(7).random

    taken = sum(chosen(split(0.25), "", draw) for _ in range(20_000))

    assert taken / 20_000 == pytest.approx(0.25, abs=0.015)
    assert not chosen(split(0.0), "", lambda: 0.0)
    assert chosen(split(1.0), "", lambda: 0.9999)
