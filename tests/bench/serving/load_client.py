"""Load through our own client, as a script in the device's environment: frames on the Unix socket, or shared memory.

    python load_client.py SOCKET MODEL EXAMPLE.npy EXPECTED.npy --path socket|shared|shared-single
                          --concurrency 32 --seconds 4

    socket         one connection; at 1 one call waits for the other, above as many are under way as the window says
    shared         rows in shared memory: two runs of half the rows each, one being filled while the other is worked on
    shared-single  the same, each row a request of its own

Every row is written before it is asked for and read after, every sixteenth answer is held against the model's. One
line of JSON comes out; an inference is one row. This is the one place that knows the client's interface.
"""

import argparse
import json
import sys
import time
from collections import deque
from collections.abc import Iterator

import numpy as np

from muster_agent.client import Client

CHECK_EVERY = 16
WARM_SMALL, WARM_LARGE, LARGE_BYTES = 2000, 3, 4096


class Tally:
    """Latencies and wrong answers."""

    def __init__(self, expected: np.ndarray) -> None:
        self._best = int(expected.argmax())
        self.taken_ns: list[int] = []
        self.rows = 0
        self.failed = 0

    def add(self, took_ns: int, rows: np.ndarray) -> None:
        """Take one answer; rows: [rows, ...]."""
        self.taken_ns.append(took_ns)
        self.rows += len(rows)
        if len(self.taken_ns) % CHECK_EVERY == 0:
            best = rows.reshape(len(rows), -1).argmax(axis=1)
            self.failed += int((best != self._best).sum())


def by_socket(model, example: np.ndarray, concurrency: int, seconds: float, tally: Tally) -> None:
    clock = time.perf_counter_ns
    end = clock() + int(seconds * 1e9)
    name = model.release.outputs[0].name
    if concurrency == 1:
        while (before := clock()) < end:
            rows = model.infer(example).outputs[name]
            tally.add(clock() - before, rows)
        return
    sent: deque[int] = deque()

    def asks() -> Iterator[np.ndarray]:
        while (now := clock()) < end:
            sent.append(now)
            yield example

    for answer in model.infer_many(asks(), window=concurrency):
        tally.add(clock() - sent.popleft(), answer.outputs[name])


def by_shared(model, example: np.ndarray, concurrency: int, seconds: float, tally: Tally, run_rows: int) -> None:
    clock = time.perf_counter_ns
    with model.shared(slots=concurrency) as shared:
        (given,), (answered,) = shared.inputs.values(), shared.outputs.values()
        under_way: deque[tuple[int, int, object]] = deque()

        def begin(start: int) -> None:
            now = clock()
            given[start : start + run_rows] = example
            under_way.append((start, now, shared.submit(start, run_rows)))

        end = clock() + int(seconds * 1e9)
        for start in range(0, concurrency - run_rows + 1, run_rows):
            begin(start)
        while under_way:
            start, before, run = under_way.popleft()
            run.result()
            tally.add(clock() - before, answered[start : start + run_rows])
            if clock() < end:
                begin(start)


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("socket")
    parser.add_argument("model")
    parser.add_argument("example")
    parser.add_argument("expected")
    parser.add_argument("--path", choices=("socket", "shared", "shared-single"), required=True)
    parser.add_argument("--concurrency", type=int, required=True)
    parser.add_argument("--seconds", type=float, required=True)
    options = parser.parse_args()
    example, expected = np.load(options.example), np.load(options.expected)
    tally = Tally(expected)
    with Client(options.socket) as client:
        model = client.model(options.model)
        for _ in range(WARM_SMALL if example.nbytes < LARGE_BYTES else WARM_LARGE):
            model.infer(example)
        began = time.perf_counter()
        if options.path == "socket":
            by_socket(model, example, options.concurrency, options.seconds, tally)
        else:
            run_rows = 1 if options.path == "shared-single" else max(1, options.concurrency // 2)
            by_shared(model, example, options.concurrency, options.seconds, tally, run_rows)
        took_s = time.perf_counter() - began
    taken = sorted(tally.taken_ns)
    figures = {
        "rps": tally.rows / took_s,
        "p50_us": taken[len(taken) // 2] / 1e3,
        "p99_us": taken[int(len(taken) * 0.99)] / 1e3,
        "requests": tally.rows,
        "failed": tally.failed,
    }
    print(json.dumps(figures))
    return 0


if __name__ == "__main__":
    sys.exit(main())
