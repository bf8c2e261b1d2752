"""What the run of a seed came to, what is printed of one that broke a promise, and many seeds on many processes.

It knows no world: `scenarios` runs the small ones, `fleet.scenarios` the fleets.
"""

from collections.abc import Callable, Generator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from multiprocessing import get_context
from typing import Generic, TypeVar

TAIL_LINES = 30
"""Of the history of a seed that failed; all of it is shown by its replay."""
Ran_co = TypeVar("Ran_co", covariant=True)


@dataclass(frozen=True)
class Failure:
    """A seed that broke a promise, with what a person needs to look into it."""

    seed: int
    promise: str
    detail: str
    history: tuple[str, ...]
    """The last TAIL_LINES lines."""
    replay: str
    """The command that shows this very history again."""

    def text(self) -> str:
        tail = "\n".join(self.history)
        return f"{tail}\n\nseed {self.seed} broke {self.promise}: {self.detail}\nreplay: {self.replay}"

    def as_json(self) -> dict[str, object]:
        """Return it without its history."""
        return {"seed": self.seed, "promise": self.promise, "detail": self.detail, "replay": self.replay}


@dataclass(frozen=True)
class Outcome(Generic[Ran_co]):
    ran: Ran_co
    failure: Failure | None


def spread(
    simulate: Callable[[int], Outcome[Ran_co]],
    seeds: Sequence[int],
    *,
    jobs: int,
    batch_seeds: int = 1,
    batches_per_process: int | None = None,
) -> Generator[Outcome[Ran_co], None, None]:
    """Yield the outcome of each seed, as they come; closing it ends the processes.

    Args:
        simulate: Runs one world. With `jobs` above 1 it must be picklable.
        batch_seeds: Run by one process in one go, >= 1.
        batches_per_process: After so many a process is replaced by a fresh one; None for never.
    """
    if jobs <= 1:
        for seed in seeds:
            yield simulate(seed)
        return
    batches = [tuple(seeds[start : start + batch_seeds]) for start in range(0, len(seeds), batch_seeds)]
    with ProcessPoolExecutor(jobs, mp_context=get_context("spawn"), max_tasks_per_child=batches_per_process) as pool:
        futures = [pool.submit(_batch, simulate, batch) for batch in batches]
        try:
            for future in as_completed(futures):
                yield from future.result()
        finally:
            for future in futures:
                future.cancel()


def failures_of(outcomes: Sequence[Outcome[Ran_co]]) -> list[Failure]:
    """Return those that there are, by seed."""
    return sorted((each.failure for each in outcomes if each.failure is not None), key=lambda each: each.seed)


def _batch(simulate: Callable[[int], Outcome[Ran_co]], seeds: tuple[int, ...]) -> list[Outcome[Ran_co]]:
    return [simulate(seed) for seed in seeds]
