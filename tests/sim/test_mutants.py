"""A simulator that finds nothing proves nothing: each broken variant of the shipped code must be caught."""

import pytest

from muster_simulator.mutants import MUTANTS
from muster_simulator.scenarios import run

CAUGHT_BY = {
    "skip_fsync": (0, "I1-always-runnable"),
    "skip_folder_fsync": (0, "I1-always-runnable"),
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
