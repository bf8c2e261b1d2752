"""Small fleets for days of virtual time with every fault, by seed; large ones are run by hand."""

import os
import subprocess
import sys

import pytest

from muster_simulator.fleet.promises import ALL, PROMISES
from muster_simulator.fleet.scale import Scale
from muster_simulator.fleet.scenarios import replay_command, run, run_many
from muster_simulator.invariants import INVARIANTS

JOBS = min(2, os.cpu_count() or 1)
WIDE = Scale(devices=300, days=10)
SMALL = Scale(devices=60, days=3)


@pytest.mark.timeout(280)
def test_every_promise_holds_in_a_fleet_whatever_goes_wrong() -> None:
    outcomes = list(run_many(range(4), WIDE, "all", jobs=JOBS))

    failures = [outcome.failure for outcome in outcomes if outcome.failure is not None]
    assert not failures, "\n\n".join(failure.text() for failure in failures[:2])
    assert sum(outcome.ran.finished for outcome in outcomes) >= 16
    assert sum(outcome.ran.aborted for outcome in outcomes) >= 4
    assert sum(outcome.ran.refused for outcome in outcomes) >= 1, "no controller took the past for the present"


@pytest.mark.timeout(120)
def test_every_promise_holds_in_many_small_fleets() -> None:
    outcomes = list(run_many(range(100, 110), SMALL, "all", jobs=JOBS))

    failures = [outcome.failure for outcome in outcomes if outcome.failure is not None]
    assert not failures, "\n\n".join(failure.text() for failure in failures[:2])


def test_every_promise_holds_in_a_fleet_when_nothing_goes_wrong() -> None:
    outcome, _ = run(0, SMALL, "none")

    assert outcome.failure is None, outcome.failure.text()


def test_the_same_seed_is_the_same_history_in_any_process() -> None:
    here, _ = run(7, SMALL, "all")

    there = subprocess.run(
        [sys.executable, "-m", "muster_simulator", "fleet", "--devices", "60", "--days", "3", "--seed", "7"],
        env={**os.environ, "PYTHONHASHSEED": "5"},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )

    assert f"digest {here.ran.digest}" in there.stdout


def test_a_failing_seed_says_which_promise_what_happened_and_how_to_see_it_again() -> None:
    outcome, _ = run(0, SMALL, "all", "publish_before_commit")

    failure = outcome.failure
    assert failure is not None
    assert failure.promise == "F1-counters-rise"
    assert failure.replay == replay_command(0, SMALL, "all", "publish_before_commit")
    assert failure.replay.endswith("--devices 60 --days 3 --seed 0 --faults all --mutant publish_before_commit --trace")
    assert failure.replay in failure.text()


def test_every_promise_of_both_worlds_is_listed_with_what_it_says() -> None:
    assert len(ALL) == len(PROMISES) + len(INVARIANTS)
    assert all(len(promise) > 20 for promise in ALL.values())
