"""`python -m muster_simulator`: run worlds by their seeds; exit 1 when a promise is broken.

--seeds 0:1000 [--faults all|none] [--jobs 2] [--json]    many, with progress
--seed 42 --trace                                         one, line by line
--mutant NAME --seeds 0:200                               a broken variant: which seed catches it, and how
fleet --devices 10000 --days 30 --seeds 0:20              whole fleets of light devices; see `fleet.cli`
"""

import argparse
import json
import sys
import time
from collections.abc import Sequence
from typing import cast

from muster_simulator.failure import Outcome, failures_of
from muster_simulator.faults import FaultsName
from muster_simulator.fleet.cli import main as fleet_main
from muster_simulator.mutants import MUTANTS
from muster_simulator.options import add_options
from muster_simulator.scenarios import run, run_many
from muster_simulator.world import Ran

FAILURES_SHOWN = 3


def main(arguments: Sequence[str] | None = None) -> int:
    words = sys.argv[1:] if arguments is None else arguments
    if words[:1] == ["fleet"]:
        return fleet_main(words[1:])
    options = _parser().parse_args(words)
    faults = cast(FaultsName, options.faults)
    if options.seed is not None:
        return _one(options.seed, faults, options.mutant, trace=options.trace)
    return _many(options.seeds, faults, options.mutant, jobs=options.jobs, as_json=options.json)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m muster_simulator", description="Muster in virtual time, under faults."
    )
    add_options(parser, seeds="0:100", mutants=MUTANTS)
    return parser


def _one(seed: int, faults: FaultsName, mutant: str | None, *, trace: bool) -> int:
    outcome, world = run(seed, faults, mutant)
    if trace:
        for line in world.stage.history.text():
            print(line)
    ran = outcome.ran
    print(
        f"seed {seed}: {ran.rollouts} rollouts ({ran.finished} finished, {ran.aborted} aborted) in"
        f" {ran.virtual_s / 60:.0f} virtual minutes, {ran.steps} steps, digest {ran.digest}"
    )
    if outcome.failure is not None:
        print(f"\n{outcome.failure.text()}")
    return int(outcome.failure is not None)


def _many(seeds: range, faults: FaultsName, mutant: str | None, *, jobs: int, as_json: bool) -> int:
    began = time.monotonic()
    outcomes: list[Outcome[Ran]] = []
    found = run_many(seeds, faults, jobs=jobs, mutant=mutant)
    for outcome in found:
        outcomes.append(outcome)
        failed = sum(each.failure is not None for each in outcomes)
        if outcome.failure is not None and mutant is None:
            _progress("", last=True)
            print(f"seed {outcome.failure.seed} broke {outcome.failure.promise}", file=sys.stderr, flush=True)
        _progress(f"{len(outcomes)} of {len(seeds)} worlds, {failed} broken, {time.monotonic() - began:.0f} s")
        if mutant is not None and failed:
            break  # One seed is enough.
    _progress("", last=True)
    failures = failures_of(outcomes)
    seconds = time.monotonic() - began
    if as_json:
        print(json.dumps(_as_json(outcomes, seeds, faults, mutant, seconds), indent=1))
    elif mutant is not None and failures:
        print(f"{mutant}: caught by seed {failures[0].seed}, {failures[0].promise}: {failures[0].detail}")
        print(f"replay: {failures[0].replay}")
    else:
        for failure in failures[:FAILURES_SHOWN]:
            print(f"{failure.text()}\n")
        for failure in failures[FAILURES_SHOWN:]:
            print(f"seed {failure.seed} broke {failure.promise}: {failure.detail}")
        rollouts = sum(each.ran.rollouts for each in outcomes)
        hours = sum(each.ran.virtual_s for each in outcomes) / 3600
        print(
            f"{len(outcomes)} worlds, {hours:.0f} virtual hours, {rollouts} rollouts,"
            f" {len(failures)} broken, {seconds:.0f} s"
        )
    found.close()  # It ends its processes.
    caught = bool(failures)
    return int(not caught if mutant is not None else caught)


def _as_json(
    outcomes: list[Outcome[Ran]], seeds: range, faults: FaultsName, mutant: str | None, seconds: float
) -> dict[str, object]:
    return {
        "seeds": [seeds.start, seeds.stop],
        "faults": faults,
        "mutant": mutant,
        "worlds": len(outcomes),
        "virtual_hours": round(sum(each.ran.virtual_s for each in outcomes) / 3600, 1),
        "steps": sum(each.ran.steps for each in outcomes),
        "rollouts": sum(each.ran.rollouts for each in outcomes),
        "finished": sum(each.ran.finished for each in outcomes),
        "aborted": sum(each.ran.aborted for each in outcomes),
        "seconds": round(seconds, 1),
        "failures": [each.as_json() for each in failures_of(outcomes)],
    }


def _progress(text: str, *, last: bool = False) -> None:
    """Rewrite one line where a person looks on; say nothing into a file."""
    if sys.stderr.isatty():
        print(f"\r{text:<70}", end="\r" if last else "", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
