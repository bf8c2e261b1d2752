"""What the frames cost: inferences a second through the socket and through shared memory, against the bare engine.

    python tests/bench/bench_frames.py [--rounds 3] [--seconds 2] [--double] [--json]

One server process, one client process, the tiny int8 MLP. Every row is taken in every round, in turn, so that a slow
minute of the machine falls on all; figures are medians, and ratios are to the bare engine's single calls of that run.
`--double` serves with no more than the protocol and the engine, without queue, limits, checks and metrics: its ceiling.
"""

import argparse
import asyncio
import json
import logging
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import psutil
import uvloop

sys.path.insert(0, str(Path(__file__).parents[1]))

from bench.serving.models import Subject, subject
from muster_agent.client import Client, Model
from muster_agent.core.plan import ServingPlan
from muster_agent.engines.port import Session
from muster_agent.engines.registry import engine
from muster_agent.logs import configure_logs
from muster_agent.serving.admission import Admission
from muster_agent.serving.call import Batch, Call
from muster_agent.serving.config import ServingConfig
from muster_agent.serving.frames import FrameServer
from muster_agent.serving.service import Service
from muster_agent.serving.table import Served, ServingTable
from muster_shared.bundle import digest

CACHE = Path(__file__).parents[2] / ".cache" / "bench"
WINDOWS = (1, 8, 32)
BATCH_MAX = 64


def load(tiny: Subject, cache: Path) -> Session:
    variant = tiny.manifest.variants[0]
    manifest = tiny.manifest
    return engine("onnxruntime").load(
        tiny.model_file, variant, manifest.inputs, manifest.outputs, threads=1, cache_dir=cache
    )


class Double:
    """A service that only runs: all calls of one turn of the loop are one batch."""

    def __init__(self, served: Served) -> None:
        specs = served.manifest
        self._session = served.session
        self._place = SimpleNamespace(
            served=served, inputs=specs.inputs, outputs=specs.outputs, batches=True, plain=True, version=specs.version
        )
        self._place.leave = lambda: None
        self._calls: list[Call] = []

    def enter(self, model: str, version: str | None = None) -> SimpleNamespace:
        return self._place

    def submit(self, place: object, call: Call, caller: object) -> None:
        if not self._calls:
            asyncio.get_running_loop().call_soon(self._run)
        self._calls.append(call)

    def id_of(self, call: Call) -> str:
        return f"{0:012x}-{call.number:09x}"

    def _run(self) -> None:
        calls, self._calls = self._calls, []
        raw = calls[0].tensors[0] if len(calls) == 1 else b"".join([call.tensors[0] for call in calls])
        images = np.frombuffer(raw, np.float32).reshape(-1, 64)
        batch = Batch(self._session.run_arrays((images,)), 0, rows_axis=True)
        at = 0
        for call in calls:
            call.batch, call.start = batch, at
            at += call.rows
            call.settle()


async def serve(path: Path, double: bool) -> None:
    configure_logs(logging.WARNING)
    tiny = subject("tiny", CACHE)
    table = ServingTable()
    with tempfile.TemporaryDirectory() as cache:
        served = Served(
            manifest=tiny.manifest,
            manifest_sha256=digest(b"tiny"),
            session=load(tiny, Path(cache)),
            latency_ms=0.01,
            plan=ServingPlan(inline=True, batch_max=BATCH_MAX),
        )
        table.switch(tiny.manifest.model, served)
        service = Double(served) if double else Service(table)
        server = FrameServer(service, Admission(ServingConfig()))  # type: ignore[arg-type]  # The double is less.
        await server.listen_unix(path)
        print("serving", flush=True)
        await asyncio.to_thread(sys.stdin.read)
        await server.stop(5.0)
        await asyncio.to_thread(table.close, 5.0)


@contextmanager
def server(path: Path, double: bool) -> Iterator[psutil.Process]:
    command = [sys.executable, __file__, "--serve", str(path), *(["--double"] if double else [])]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stdout.readline() == b"serving\n"
        try:
            yield psutil.Process(process.pid)
        finally:
            process.stdin.close()
            process.wait(20)


Row = tuple[str, Callable[[float], tuple[float, float]]]


def bare(tiny: Subject, session: Session, rows: int, seconds: float) -> tuple[float, float]:
    images = np.repeat(tiny.example, rows, axis=0)
    count, start = 0, time.perf_counter()
    end = start + seconds
    while time.perf_counter() < end:
        session.run_arrays((images,))
        count += rows
    took = time.perf_counter() - start
    return count / took, took / count * rows * 1e6


def one_by_one(model: Model, tiny: Subject, seconds: float) -> tuple[float, float]:
    taken = []
    start = time.perf_counter()
    end = start + seconds
    while (begin := time.perf_counter()) < end:
        model.infer(tiny.example)
        taken.append(time.perf_counter() - begin)
    return len(taken) / (time.perf_counter() - start), statistics.median(taken) * 1e6


def pipelined(model: Model, tiny: Subject, window: int, seconds: float) -> tuple[float, float]:
    images = [row.copy() for row in np.repeat(tiny.example, 64, axis=0)]
    end = time.perf_counter() + seconds

    def source() -> Iterator[np.ndarray]:
        while time.perf_counter() < end:
            yield from images

    expected = tiny.expected[0].tobytes()
    count, start = 0, time.perf_counter()
    for answer in model.infer_many(source(), window=window):
        count += 1
        if not count % 997 and next(iter(answer.outputs.values())).argmax() != tiny.expected[0].argmax():
            raise AssertionError(f"a wrong answer: not {expected!r}")
    return count / (time.perf_counter() - start), 0.0


def shared(model: Model, tiny: Subject, window: int, runs_at_once: int, seconds: float) -> tuple[float, float]:
    """So many runs share the window; every row is written and every answer is read."""
    half = window // runs_at_once
    places = [index * half for index in range(runs_at_once)]
    with model.shared(slots=max(2, window)) as memory:
        slots, outputs = next(iter(memory.inputs.values())), next(iter(memory.outputs.values()))
        image = tiny.example[0]
        count, start = 0, time.perf_counter()
        end = start + seconds
        runs = []
        for place in places:
            slots[place : place + half] = image
            runs.append(memory.submit(place, half))
        turn, right = 0, 0
        while time.perf_counter() < end:
            runs[turn].result()
            place = places[turn]
            right += int(outputs[place : place + half].argmax(axis=1)[0])
            slots[place : place + half] = image
            runs[turn] = memory.submit(place, half)
            count += half
            turn = (turn + 1) % len(places)
        took = time.perf_counter() - start
        for run in runs:
            run.result()
    assert right == count // half * int(tiny.expected[0].argmax()), "a wrong answer"
    return count / took, took / max(count, 1) * 1e6


def main() -> int:
    parser = argparse.ArgumentParser(description="What the frames cost.")
    parser.add_argument("--serve", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--double", action="store_true")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=2.0)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    if options.serve is not None:
        uvloop.run(serve(options.serve, options.double))
        return 0
    tiny = subject("tiny", CACHE)
    seconds: float = options.seconds
    figures: dict[str, list[tuple[float, ...]]] = {}
    with tempfile.TemporaryDirectory(prefix="muster-") as folder:
        path = Path(folder) / "agent.sock"
        session = load(tiny, Path(folder))
        with server(path, options.double) as agent, Client(path) as client, Client(path, spin_us=0) as sleeping:
            model, asleep = client.model("tiny"), sleeping.model("tiny")
            rows: list[Row] = [
                ("bare engine, 1 row", lambda s: bare(tiny, session, 1, s)),
                ("bare engine, 32 rows", lambda s: bare(tiny, session, 32, s)),
                ("frames w=1", lambda s: one_by_one(model, tiny, s)),
                ("frames w=1, no spin", lambda s: one_by_one(asleep, tiny, s)),
            ]
            for window in WINDOWS[1:]:
                rows.append((f"frames w={window}", lambda s, w=window: pipelined(model, tiny, w, s)))
                rows.append((f"frames w={window}, no spin", lambda s, w=window: pipelined(asleep, tiny, w, s)))
            for window in WINDOWS:
                for at_once in (1, 2) if window > 1 else (1,):
                    name = f"shared w={window} in {at_once}"
                    rows.append((name, lambda s, w=window, n=at_once: shared(model, tiny, w, n, s)))
                    rows.append((f"{name}, no spin", lambda s, w=window, n=at_once: shared(asleep, tiny, w, n, s)))
            for _ in range(options.rounds):
                for name, measure in rows:
                    here, there = time.process_time(), agent.cpu_times()
                    rate, us = measure(seconds)
                    count = max(rate, 1.0) * seconds / 1e6
                    mine = (time.process_time() - here) / count
                    after = agent.cpu_times()
                    its = (after.user + after.system - there.user - there.system) / count
                    figures.setdefault(name, []).append((rate, us, mine, its))
    medians = {name: [statistics.median(each) for each in zip(*taken, strict=True)] for name, taken in figures.items()}
    if options.json:
        print(json.dumps({"double": options.double, "inferences_per_s": medians}))
        return 0
    base = medians["bare engine, 1 row"][0]
    print(f"{'':24} {'median':>11} {'best':>11}  {'x bare':>6}  {'p50 us':>7}  CPU us an inference: client, server")
    for name, (rate, us, mine, its) in medians.items():
        best = max(x[0] for x in figures[name])
        print(f"{name:26} {rate:>9,.0f}/s {best:>9,.0f}/s  {rate / base:6.2f}  {us:7.1f}  {mine:7.1f} {its:7.1f}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
