"""Many rehearsals, on one process or several: the same results in the same order. Nothing is added up here."""

import signal
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from functools import lru_cache
from multiprocessing import get_context

from muster_controller.core.policy import Policy
from muster_simulator.rehearsal.fleet_shape import Document
from muster_simulator.rehearsal.run import People, Rehearsal, Result
from muster_simulator.rehearsal.scenarios import Scenario

PATIENT = People()
BATCH_RUNS = 10  # Few enough that progress shows, enough that processes are not what is waited for.


@dataclass(frozen=True)
class Order:
    """All that decides the results."""

    policy: Policy
    document: Document
    scenarios: tuple[Scenario, ...]
    seed: int
    runs: int
    people: People = PATIENT

    def rehearsal(self) -> Rehearsal:
        """Raises PolicyInvalid, RehearsalRefused."""
        return Rehearsal(self.policy, self.document.select(self.policy.selector), self.seed, self.people)


def repeat(order: Order, jobs: int, done: Callable[[Scenario, int], None] = lambda *_: None) -> list[list[Result]]:
    """Return the results of every scenario, each in the order of its runs.

    Args:
        jobs: Processes; none is started for 1.
        done: Told of runs as they come.
    """
    batches = [
        (place, range(first, min(first + BATCH_RUNS, order.runs)))
        for first in range(0, order.runs, BATCH_RUNS)
        for place in range(len(order.scenarios))
    ]
    found: dict[tuple[int, int], list[Result]] = {}

    def take(place: int, numbers: Sequence[int], results: list[Result]) -> None:
        found[place, numbers[0]] = results
        done(order.scenarios[place], len(results))

    if jobs <= 1 or len(batches) == 1:
        rehearsal = order.rehearsal()
        for place, numbers in batches:
            take(place, numbers, [rehearsal.run(order.scenarios[place], number) for number in numbers])
    else:
        context = get_context("spawn")
        with ProcessPoolExecutor(jobs, context, initializer=_prepare, initargs=(order,)) as pool:
            waiting = {pool.submit(_batch, place, numbers): (place, numbers) for place, numbers in batches}
            try:
                for future in as_completed(waiting):
                    take(*waiting[future], future.result())
            finally:
                for future in waiting:
                    future.cancel()
    return [
        [result for first in range(0, order.runs, BATCH_RUNS) for result in found[place, first]]
        for place in range(len(order.scenarios))
    ]


@lru_cache(maxsize=1)
def _prepared() -> list[tuple[Order, Rehearsal]]:
    """What this process works on; filled once, by `_prepare`."""
    return []


def _prepare(order: Order) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the process that a person looks at; it ends this one.
    _prepared().append((order, order.rehearsal()))


def _batch(place: int, numbers: Sequence[int]) -> list[Result]:
    order, rehearsal = _prepared()[0]
    return [rehearsal.run(order.scenarios[place], number) for number in numbers]
