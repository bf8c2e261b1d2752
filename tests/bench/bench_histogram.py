"""What it costs to record the stages of an inference, to count its rows, to ask the breaker: nanoseconds of each.

    python tests/bench/bench_histogram.py [--records 200000] [--rounds 7]

Each loop runs `rounds` times, interleaved with the others and with a loop that calls an empty method; printed are the
fastest round of each, and its ratio to the empty one. Folding is included: the ring overflows as it does in service.
"""

import argparse
import time
from collections.abc import Callable

from muster_agent.core.breaker import Breaker, BreakerSettings
from muster_agent.core.latency import StageHistograms
from muster_agent.core.rate import meter
from muster_agent.serving.admission import Caller

BATCH = 32


class Empty:
    __slots__ = ()

    def record(self, queue_ns: int, input_ns: int, compute_ns: int, output_ns: int) -> None:
        pass


def empty(records: int) -> None:
    record = Empty().record
    for number in range(records):
        record(1000 + number, 2000, 10_000, 3000)


def singles(records: int) -> None:
    record = StageHistograms().record
    for number in range(records):
        record(1000 + number, 2000, 10_000, 3000)


def batches(records: int) -> None:
    """With the subtraction that finds how long each call waited."""
    record = StageHistograms().record_batch
    arrivals = list(range(BATCH))
    for number in range(0, records, BATCH):
        record([number + 1000 - arrived for arrived in arrivals], 2000, 10_000, 3000)


def limited(records: int) -> None:
    take = Caller("bench", meter(1e9, 1_000_000_000)).take
    for number in range(records):
        take(1, number)


def unlimited(records: int) -> None:
    take = Caller("bench", meter(0.0, 0)).take
    for number in range(records):
        take(1, number)


def breaker(records: int) -> None:
    """Asking, and reporting a success."""
    under_test = Breaker("bench", BreakerSettings())
    allows, succeeded = under_test.allows, under_test.succeeded
    for number in range(records):
        allows(number)
        succeeded(number, number)


LOOPS: dict[str, Callable[[int], None]] = {
    "an empty method": empty,
    "four stages of one inference": singles,
    f"four stages of one in a batch of {BATCH}": batches,
    "a caller with a limit": limited,
    "a caller without": unlimited,
    "the breaker, asked and told": breaker,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--records", type=int, default=200_000)
    parser.add_argument("--rounds", type=int, default=7)
    arguments = parser.parse_args()
    best = dict.fromkeys(LOOPS, float("inf"))
    for _ in range(arguments.rounds):
        for name, loop in LOOPS.items():
            start = time.perf_counter_ns()
            loop(arguments.records)
            best[name] = min(best[name], (time.perf_counter_ns() - start) / arguments.records)
    for name, ns in best.items():
        print(f"{name:42} {ns:7.0f} ns  {ns / best['an empty method']:5.1f}x")


if __name__ == "__main__":
    main()
