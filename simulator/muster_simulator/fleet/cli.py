"""`python -m muster_simulator fleet`: run fleet worlds by their seeds; exit 1 when a promise is broken.

--devices 10000 --days 30 --seeds 0:20 [--faults all|none] [--jobs 2] [--json]    many, with progress
--seed 3 --trace [--watch d00042]                          one, line by line, with every step of some devices
--mutant NAME --seeds 0:20                                 a broken variant: which seed catches it, and how
--promises                                                 what must hold, in both worlds
"""

import argparse
import json
import time
from collections.abc import Sequence
from typing import cast

from muster_shared.ids import DeviceId
from muster_simulator.failure import Outcome, failures_of
from muster_simulator.faults import FaultsName
from muster_simulator.fleet.mutants import MUTANTS
from muster_simulator.fleet.promises import ALL
from muster_simulator.fleet.scale import DAY_S, Scale
from muster_simulator.fleet.scenarios import run, run_many
from muster_simulator.fleet.world import Ran
from muster_simulator.options import add_options


def main(arguments: Sequence[str]) -> int:
    options = _parser().parse_args(arguments)
    if options.promises:
        for name, promise in ALL.items():
            print(f"{name:<28}{promise}")
        return 0
    scale = Scale(devices=options.devices, days=options.days)
    faults = cast(FaultsName, options.faults)
    if options.seed is not None:
        return _one(options.seed, scale, faults, options.mutant, options.watch, trace=options.trace)
    return _many(options.seeds, scale, faults, options.mutant, jobs=options.jobs, as_json=options.json)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m muster_simulator fleet", description="A whole fleet in virtual time, under faults."
    )
    what = add_options(parser, seeds="0:4", mutants=MUTANTS)
    what.add_argument("--promises", action="store_true", help="Print what must hold, in both worlds.")
    parser.add_argument("--devices", type=int, default=1000)
    parser.add_argument("--days", type=float, default=10.0, help="Virtual days.")
    parser.add_argument("--watch", nargs="*", default=[], help="With --trace: devices of which every step is printed.")
    return parser


def _one(seed: int, scale: Scale, faults: FaultsName, mutant: str | None, watch: list[str], *, trace: bool) -> int:
    outcome, world = run(seed, scale, faults, mutant, frozenset(DeviceId(each) for each in watch))
    if trace:
        for line in world.history.text():
            print(line)
    print(_line(outcome))
    if outcome.failure is not None:
        print(f"\n{outcome.failure.text()}")
    return int(outcome.failure is not None)


def _many(seeds: range, scale: Scale, faults: FaultsName, mutant: str | None, *, jobs: int, as_json: bool) -> int:
    began = time.monotonic()
    outcomes: list[Outcome[Ran]] = []
    found = run_many(seeds, scale, faults, jobs=jobs, mutant=mutant)
    for outcome in found:
        outcomes.append(outcome)
        if not as_json:
            print(_line(outcome), flush=True)
            if outcome.failure is not None and mutant is None:
                print(f"\n{outcome.failure.text()}\n", flush=True)
        if mutant is not None and outcome.failure is not None:
            break  # One seed is enough.
    found.close()  # It ends its processes.
    failures = failures_of(outcomes)
    if as_json:
        print(json.dumps(_as_json(outcomes, scale, faults, mutant, time.monotonic() - began), indent=1))
    elif mutant is not None and failures:
        print(f"{mutant}: caught by seed {failures[0].seed}, {failures[0].promise}: {failures[0].detail}")
        print(f"replay: {failures[0].replay}")
    else:
        rate = _rate(outcomes)
        print(
            f"{len(outcomes)} fleets of {scale.devices} devices x {scale.days:g} days,"
            f" {sum(each.ran.rollouts for each in outcomes)} rollouts, {len(failures)} broken,"
            f" {time.monotonic() - began:.0f} s; {rate:.0f} device-days a second and core,"
            f" {rate * DAY_S / 1e6:.0f} million times as fast as one device lives"
        )
    return int(not failures if mutant is not None else bool(failures))


def _rate(outcomes: Sequence[Outcome[Ran]]) -> float:
    """Return simulated devices times virtual days for each second of one core."""
    seconds = sum(each.ran.seconds for each in outcomes)
    return sum(each.ran.device_days_per_s * each.ran.seconds for each in outcomes) / max(seconds, 1e-9)


def _line(outcome: Outcome[Ran]) -> str:
    ran = outcome.ran
    said = "broken" if ran.broken is not None else "holds"
    return (
        f"seed {ran.seed}: {said}; {ran.rollouts} rollouts ({ran.finished} finished, {ran.aborted} aborted) in"
        f" {ran.virtual_s / DAY_S:.1f} days, {ran.messages} messages, {ran.refused} stale writes refused,"
        f" {ran.seconds:.0f} s, {ran.device_days_per_s:.0f} device-days/s, digest {ran.digest}"
    )


def _as_json(
    outcomes: Sequence[Outcome[Ran]], scale: Scale, faults: FaultsName, mutant: str | None, seconds: float
) -> dict[str, object]:
    return {
        "devices": scale.devices,
        "days": scale.days,
        "faults": faults,
        "mutant": mutant,
        "fleets": len(outcomes),
        "messages": sum(each.ran.messages for each in outcomes),
        "rollouts": sum(each.ran.rollouts for each in outcomes),
        "finished": sum(each.ran.finished for each in outcomes),
        "aborted": sum(each.ran.aborted for each in outcomes),
        "seconds": round(seconds, 1),
        "device_days_per_s": round(_rate(outcomes), 1),
        "failures": [each.as_json() for each in failures_of(outcomes)],
    }
