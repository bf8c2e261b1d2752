"""A simulator that finds nothing proves nothing: each broken variant of the shipped code must be caught."""

import pytest

from muster_simulator.mutants import MUTANTS
from muster_simulator.scenarios import run

CAUGHT_BY = {
    "accept_old_counter": (1, "I3-counters-rise"),
    "ack_before_commit": (1, "I7-nothing-lost"),
    "forget_outbox": (0, "I7-nothing-lost"),
    "late_joiners_bypass": (1, "I9-held-back"),
    "no_republish_on_connect": (36, "I11-converges"),
    "promote_on_silence": (0, "I5-no-promotion-on-silence"),
    "publish_before_commit": (11, "I3-counters-rise"),
    "rollback_drops_standby": (0, "I6-calling-back-is-free"),
    "skip_folder_fsync": (0, "I1-always-runnable"),
    "skip_fsync": (0, "I1-always-runnable"),
    "skip_target_check": (0, "I3-counters-rise"),
    "switch_before_self_test": (0, "I12-proven-first"),
    "wait_for_ever": (2, "I4-rollouts-end"),
}
"""Mutant -> a seed that catches it, and the promise it breaks there. `--mutant NAME --seeds 0:200` finds another."""


def test_every_mutant_has_a_seed() -> None:
    assert CAUGHT_BY.keys() == MUTANTS.keys()


@pytest.mark.parametrize("name", sorted(MUTANTS))
def test_the_mutant_is_caught(name: str) -> None:
    seed, invariant = CAUGHT_BY[name]

    outcome, _ = run(seed, "all", name)

    assert outcome.failure is not None, f"{name} survived seed {seed}"
    assert outcome.failure.invariant == invariant
