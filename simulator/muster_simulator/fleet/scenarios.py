"""Running fleet worlds: one seed, many seeds on many processes, and what is printed when one fails."""

import logging
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import nullcontext
from dataclasses import dataclass
from functools import cache
from multiprocessing import get_context

import structlog

from muster_shared.ids import DeviceId
from muster_simulator.faults import FaultsName
from muster_simulator.fleet.mutants import MUTANTS
from muster_simulator.fleet.scale import FleetFaults, Scale
from muster_simulator.fleet.world import FleetWorld, Ran

TAIL_LINES = 30


@dataclass(frozen=True)
class Failure:
    """A seed that broke a promise, with what a person needs to look into it."""

    seed: int
    promise: str
    detail: str
    history: tuple[str, ...]
    replay: str

    def text(self) -> str:
        tail = "\n".join(self.history)
        return f"{tail}\n\nseed {self.seed} broke {self.promise}: {self.detail}\nreplay: {self.replay}"


@dataclass(frozen=True)
class Outcome:
    ran: Ran
    failure: Failure | None


@cache
def prepare() -> None:
    """Make this process fit to simulate: no logs, and pure functions that are asked the same thing remember."""
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))


def run(
    seed: int,
    scale: Scale,
    faults: FaultsName,
    mutant: str | None = None,
    traced: frozenset[DeviceId] = frozenset(),
) -> tuple[Outcome, FleetWorld]:
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
) -> Iterator[Outcome]:
    """Yield the outcome of each seed, as they come."""
    if jobs <= 1:
        for seed in seeds:
            yield run(seed, scale, faults, mutant)[0]
        return
    with ProcessPoolExecutor(jobs, mp_context=get_context("spawn"), max_tasks_per_child=1) as pool:
        futures = [pool.submit(_run, seed, scale, faults, mutant) for seed in seeds]
        try:
            for future in as_completed(futures):
                yield future.result()
        finally:
            for future in futures:
                future.cancel()


def replay_command(seed: int, scale: Scale, faults: FaultsName, mutant: str | None = None) -> str:
    """Return the command that shows this very history again."""
    words = ["python -m muster_simulator fleet", f"--devices {scale.devices} --days {scale.days:g}"]
    words.append(f"--seed {seed} --faults {faults}")
    if mutant is not None:
        words.append(f"--mutant {mutant}")
    return " ".join([*words, "--trace"])


def _run(seed: int, scale: Scale, faults: FaultsName, mutant: str | None) -> Outcome:
    return run(seed, scale, faults, mutant)[0]
