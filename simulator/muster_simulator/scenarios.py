"""Running worlds: one seed, many seeds on many processes, and what is printed when one fails."""

import logging
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import nullcontext
from dataclasses import dataclass
from functools import cache, lru_cache
from multiprocessing import get_context

import structlog

from muster_agent import conductor
from muster_shared import bundle
from muster_simulator.faults import Faults, FaultsName
from muster_simulator.mutants import MUTANTS
from muster_simulator.world import Ran, World

TAIL_LINES = 30
BATCH_SEEDS = 8  # Few enough that progress shows, enough that processes are not what is waited for.


@dataclass(frozen=True)
class Failure:
    """A seed that broke a promise, with what a person needs to look into it."""

    seed: int
    invariant: str
    detail: str
    history: tuple[str, ...]
    replay: str

    def text(self) -> str:
        tail = "\n".join(self.history)
        return f"{tail}\n\nseed {self.seed} broke {self.invariant}: {self.detail}\nreplay: {self.replay}"


@dataclass(frozen=True)
class Outcome:
    ran: Ran
    failure: Failure | None


@cache
def prepare() -> None:
    """Make this process fit to simulate: no logs, and pure functions that are asked the same thing remember."""
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))
    vars(conductor)["parse_manifest"] = lru_cache(maxsize=512)(bundle.parse_manifest)


def run(seed: int, faults: FaultsName, mutant: str | None = None) -> tuple[Outcome, World]:
    """Run one world, by the shipped code or by a broken variant of it."""
    prepare()
    with nullcontext() if mutant is None else MUTANTS[mutant].applied():
        world = World(seed, Faults.named(faults))
        ran = world.run()
    if ran.broken is None:
        return Outcome(ran, None), world
    failure = Failure(
        seed=seed,
        invariant=ran.broken.name,
        detail=ran.broken.detail,
        history=tuple(world.stage.history.text(TAIL_LINES)),
        replay=replay_command(seed, faults, mutant),
    )
    return Outcome(ran, failure), world


def run_many(seeds: Sequence[int], faults: FaultsName, *, jobs: int, mutant: str | None = None) -> Iterator[Outcome]:
    """Yield the outcome of each seed, as they come."""
    if jobs <= 1:
        for seed in seeds:
            yield run(seed, faults, mutant)[0]
        return
    batches = [tuple(seeds[start : start + BATCH_SEEDS]) for start in range(0, len(seeds), BATCH_SEEDS)]
    with ProcessPoolExecutor(jobs, mp_context=get_context("spawn")) as pool:
        futures = [pool.submit(_run_batch, batch, faults, mutant) for batch in batches]
        try:
            for future in as_completed(futures):
                yield from future.result()
        finally:
            for future in futures:
                future.cancel()


def replay_command(seed: int, faults: FaultsName, mutant: str | None = None) -> str:
    """Return the command that shows this very history again."""
    words = [f"python -m muster_simulator --seed {seed} --faults {faults}"]
    if mutant is not None:
        words.append(f"--mutant {mutant}")
    return " ".join([*words, "--trace"])


def _run_batch(seeds: tuple[int, ...], faults: FaultsName, mutant: str | None) -> list[Outcome]:
    return [run(seed, faults, mutant)[0] for seed in seeds]
