"""Three hundred worlds with every fault, by seed; and that a seed is a history."""

import os
import subprocess
import sys

import pytest

from muster_simulator.scenarios import run, run_many

SEEDS = 300
CASES = 3
JOBS = min(2, os.cpu_count() or 1)


@pytest.mark.timeout(280)
@pytest.mark.parametrize("case", range(CASES))
def test_every_promise_holds_whatever_goes_wrong(case: int) -> None:
    size = SEEDS // CASES
    seeds = range(case * size, (case + 1) * size)

    outcomes = list(run_many(seeds, "all", jobs=JOBS))

    failures = [outcome.failure for outcome in outcomes if outcome.failure is not None]
    assert len(outcomes) == size
    assert not failures, "\n\n".join(failure.text() for failure in failures[:3])


def test_every_promise_holds_when_nothing_goes_wrong() -> None:
    outcomes = list(run_many(range(8), "none", jobs=JOBS))

    failures = [outcome.failure for outcome in outcomes if outcome.failure is not None]
    assert not failures, "\n\n".join(failure.text() for failure in failures)


def test_worlds_do_roll_out_and_do_call_back() -> None:
    outcomes = list(run_many(range(6), "all", jobs=JOBS))

    assert sum(outcome.ran.finished for outcome in outcomes) > 12
    assert sum(outcome.ran.aborted for outcome in outcomes) > 6


def test_the_same_seed_is_the_same_history_to_the_last_bit() -> None:
    first, _ = run(7, "all")
    second, _ = run(7, "all")
    other, _ = run(8, "all")

    assert first.ran.digest == second.ran.digest
    assert first.ran.digest != other.ran.digest


@pytest.mark.parametrize("hash_seed", ["1", "2"])
def test_a_history_does_not_depend_on_the_process(hash_seed: str) -> None:
    here, _ = run(7, "all")

    there = subprocess.run(
        [sys.executable, "-m", "muster_simulator", "--seed", "7"],
        env={**os.environ, "PYTHONHASHSEED": hash_seed},
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )

    assert here.ran.digest in there.stdout


def test_a_failing_seed_says_which_promise_what_happened_and_how_to_see_it_again() -> None:
    outcome, _ = run(0, "all", "skip_fsync")

    failure = outcome.failure
    assert failure is not None
    assert failure.promise == "I1-always-runnable"
    assert failure.replay == "python -m muster_simulator --seed 0 --faults all --mutant skip_fsync --trace"
    assert failure.replay in failure.text()
    assert 10 <= len(failure.history) <= 30
