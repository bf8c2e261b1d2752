"""Running worlds: one seed, many seeds on many processes, and what is printed when one fails."""

import logging
from collections.abc import Generator, Sequence
from contextlib import nullcontext
from functools import cache, lru_cache, partial

import structlog

from muster_agent import conductor
from muster_shared import bundle
from muster_simulator.failure import TAIL_LINES, Failure, Outcome, spread
from muster_simulator.faults import Faults, FaultsName
from muster_simulator.mutants import MUTANTS
from muster_simulator.world import Ran, World

BATCH_SEEDS = 8  # Few enough that progress shows, enough that processes are not what is waited for.


@cache
def prepare() -> None:
    """Make this process fit to simulate: no logs, and pure functions that are asked the same thing remember."""
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))
    vars(conductor)["parse_manifest"] = lru_cache(maxsize=512)(bundle.parse_manifest)


def run(seed: int, faults: FaultsName, mutant: str | None = None) -> tuple[Outcome[Ran], World]:
    """Run one world, by the shipped code or by a broken variant of it."""
    prepare()
    with nullcontext() if mutant is None else MUTANTS[mutant].applied():
        world = World(seed, Faults.named(faults))
        ran = world.run()
    if ran.broken is None:
        return Outcome(ran, None), world
    failure = Failure(
        seed=seed,
        promise=ran.broken.name,
        detail=ran.broken.detail,
        history=tuple(world.stage.history.text(TAIL_LINES)),
        replay=replay_command(seed, faults, mutant),
    )
    return Outcome(ran, failure), world


def run_many(
    seeds: Sequence[int], faults: FaultsName, *, jobs: int, mutant: str | None = None
) -> Generator[Outcome[Ran], None, None]:
    """Yield the outcome of each seed, as they come."""
    return spread(partial(_outcome, faults=faults, mutant=mutant), seeds, jobs=jobs, batch_seeds=BATCH_SEEDS)


def replay_command(seed: int, faults: FaultsName, mutant: str | None = None) -> str:
    """Return the command that shows this very history again."""
    words = [f"python -m muster_simulator --seed {seed} --faults {faults}"]
    if mutant is not None:
        words.append(f"--mutant {mutant}")
    return " ".join([*words, "--trace"])


def _outcome(seed: int, faults: FaultsName, mutant: str | None) -> Outcome[Ran]:
    return run(seed, faults, mutant)[0]
