"""Running fleet worlds: one seed, many seeds on many processes, and what is printed when one fails."""

import logging
from collections.abc import Generator, Sequence
from contextlib import nullcontext
from functools import cache, partial

import structlog

from muster_shared.ids import DeviceId
from muster_simulator.failure import TAIL_LINES, Failure, Outcome, spread
from muster_simulator.faults import FaultsName
from muster_simulator.fleet.mutants import MUTANTS
from muster_simulator.fleet.scale import FleetFaults, Scale
from muster_simulator.fleet.world import FleetWorld, Ran


@cache
def prepare() -> None:
    """Make this process fit to simulate: no logs."""
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))


def run(
    seed: int,
    scale: Scale,
    faults: FaultsName,
    mutant: str | None = None,
    traced: frozenset[DeviceId] = frozenset(),
) -> tuple[Outcome[Ran], FleetWorld]:
    """Run one world, by the shipped code or by a broken variant of it."""
    prepare()
    with nullcontext() if mutant is None else MUTANTS[mutant].applied():
        world = FleetWorld(seed, scale, FleetFaults.named(faults), traced)
        ran = world.run()
    if ran.broken is None:
        return Outcome(ran, None), world
    failure = Failure(
        seed=seed,
        promise=ran.broken.name,
        detail=ran.broken.detail,
        history=tuple(world.history.text(TAIL_LINES)),
        replay=replay_command(seed, scale, faults, mutant),
    )
    return Outcome(ran, failure), world


def run_many(
    seeds: Sequence[int], scale: Scale, faults: FaultsName, *, jobs: int, mutant: str | None = None
) -> Generator[Outcome[Ran], None, None]:
    """Yield the outcome of each seed, as they come."""
    simulate = partial(_outcome, scale=scale, faults=faults, mutant=mutant)
    return spread(simulate, seeds, jobs=jobs, batches_per_process=1)  # What a large fleet took is given back.


def replay_command(seed: int, scale: Scale, faults: FaultsName, mutant: str | None = None) -> str:
    """Return the command that shows this very history again."""
    words = ["python -m muster_simulator fleet", f"--devices {scale.devices} --days {scale.days:g}"]
    words.append(f"--seed {seed} --faults {faults}")
    if mutant is not None:
        words.append(f"--mutant {mutant}")
    return " ".join([*words, "--trace"])


def _outcome(seed: int, scale: Scale, faults: FaultsName, mutant: str | None) -> Outcome[Ran]:
    return run(seed, scale, faults, mutant)[0]
