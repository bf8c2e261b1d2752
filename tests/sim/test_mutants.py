"""A simulator that finds nothing proves nothing: each broken variant of the shipped code must be caught."""

import pytest

from muster_simulator.mutants import MUTANTS
from muster_simulator.scenarios import run

CAUGHT_BY = {
    "accept_old_counter": ("I3-counters-rise", "I1-always-runnable"),
    "ack_before_commit": ("I7-nothing-lost",),
    "forget_outbox": ("I7-nothing-lost",),
    "late_joiners_bypass": ("I9-held-back",),
    "no_republish_on_connect": ("I11-converges",),
    "promote_on_silence": ("I5-no-promotion-on-silence",),
    "publish_before_commit": ("I3-counters-rise",),
    "rollback_drops_standby": ("I6-calling-back-is-free",),
    "skip_folder_fsync": ("I1-always-runnable",),
    "skip_fsync": ("I1-always-runnable",),
    "skip_target_check": ("I3-counters-rise", "I2-only-trusted"),
    "switch_before_self_test": ("I12-proven-first",),
    "wait_for_ever": ("I4-rollouts-end",),
}
"""Mutant -> the promises that it may be seen to break first."""
SEEDS = range(80)
"""Most are caught by the first seed; a crash at one certain call takes a few."""


def test_every_mutant_is_expected() -> None:
    assert CAUGHT_BY.keys() == MUTANTS.keys()


@pytest.mark.parametrize("name", sorted(MUTANTS))
def test_the_mutant_is_caught(name: str) -> None:
    failures = (run(seed, "all", name)[0].failure for seed in SEEDS)

    caught = next((failure for failure in failures if failure is not None), None)

    assert caught is not None, f"{name} survived {SEEDS}"
    assert caught.promise in CAUGHT_BY[name], caught.text()
