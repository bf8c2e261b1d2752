"""`python -m bench.serving [--rounds 3] [--seconds 4] [--only muster,raw] [--models tiny] [--json FILE]`

Rounds are interleaved: each starts, warms, loads and stops every server once, so that a slow minute of the machine
falls on all. Servers run one at a time. Figures are medians over the rounds.
"""

import argparse
import json
import math
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import psutil

from bench.serving import device, models, peers, raw, swap, wrk
from bench.serving.device import Device
from bench.serving.models import Subject
from bench.serving.peers import Peer
from bench.serving.processes import PeakMemory, Server, ServerFailed
from bench.serving.report import render
from bench.serving.results import Figures, Idle, Results, Start
from bench.serving.targets import CLIENT, JSON, MUSTER, RAW, SHARED, SHARED_SINGLE
from bench.serving.wire import Ask, Form, ask
from harness.fleet_of_one import free_port

HERE = Path(__file__).parent
CACHE = device.ROOT / ".cache" / "bench"
WARM_S = 1
SLOW_FACTOR = 2  # A 99th percentile of 25 ms calls needs more seconds than one of 25 us calls.
CLIENTS = ((CLIENT, "socket"), (SHARED, "shared"), (SHARED_SINGLE, "shared-single"))


@dataclass(frozen=True)
class Options:
    rounds: int
    seconds: int
    concurrencies: tuple[int, ...]
    only: tuple[str, ...]
    models: tuple[str, ...]
    engine: str
    swap_s: int
    idle_s: float

    def wants(self, server: str) -> bool:
        return not self.only or any(server.lower().startswith(each) for each in self.only)

    @property
    def wants_agent(self) -> bool:
        """Whether any of what is asked of the agent is wanted."""
        return any(self.wants(name) for name in (MUSTER, JSON, *(name for name, _ in CLIENTS)))


def main() -> int:
    options, json_file = _options()
    try:
        wrk.require()
    except wrk.WrkMissing as error:
        print(error, file=sys.stderr)
        return 2
    results = Results(machine=f"{os.cpu_count()} processors, {platform.machine()}, Python {platform.python_version()}")
    began_s, busy_s, own_s = time.monotonic(), _busy_s(), _own_s()
    with tempfile.TemporaryDirectory(prefix="mb-") as name:
        try:
            _run(options, results, Path(name))
        except KeyboardInterrupt:
            say("interrupted: this is what was measured so far")
    passed_s = (time.monotonic() - began_s) * (os.cpu_count() or 1)
    results.others = max(0.0, (_busy_s() - busy_s) - (_own_s() - own_s)) / passed_s
    print(render(results), flush=True)
    if json_file is not None:
        json_file.write_text(json.dumps(results.document(), indent=1))
    return 0


def _busy_s() -> float:
    """Return what all processors have worked so far."""
    times = psutil.cpu_times()
    return float(sum(times) - times.idle - getattr(times, "iowait", 0.0))


def _own_s() -> float:
    """Return what this process and all that it has started and seen end have worked."""
    times = psutil.Process().cpu_times()
    return float(times.user + times.system + times.children_user + times.children_system)


def say(line: str) -> None:
    print(f"  .. {line}", file=sys.stderr, flush=True)


def _options() -> tuple[Options, Path | None]:
    parser = argparse.ArgumentParser(prog="bench.serving", description="Our serving against its peers and the engine.")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument(
        "--seconds", type=int, default=4, help=f"of each load, whole ones; {SLOW_FACTOR}x for magika and conv"
    )
    parser.add_argument("--concurrency", default="1,8,32")
    parser.add_argument("--only", default="", help="names of servers, or how they begin: muster,raw,bare,mlserver,...")
    parser.add_argument("--models", default=",".join(models.NAMES))
    parser.add_argument(
        "--engine", choices=("onnxruntime", "openvino"), default="onnxruntime", help="of raw and muster"
    )
    parser.add_argument("--swap-seconds", type=int, default=60, help="0: no hot swaps")
    parser.add_argument("--idle-seconds", type=float, default=10.0, help="0: no idle figures")
    parser.add_argument("--json", type=Path, help="write all figures there")
    given = parser.parse_args()
    chosen = tuple(given.models.split(","))
    if unknown := set(chosen) - set(models.NAMES):
        parser.error(f"no such models: {', '.join(sorted(unknown))}; there are {', '.join(models.NAMES)}")
    options = Options(
        rounds=given.rounds,
        seconds=given.seconds,
        concurrencies=tuple(int(each) for each in given.concurrency.split(",")),
        only=tuple(each.strip().lower() for each in given.only.split(",") if each.strip()),
        models=chosen,
        engine=given.engine,
        swap_s=given.swap_seconds,
        idle_s=given.idle_seconds,
    )
    return options, given.json


def _run(options: Options, results: Results, folder: Path) -> None:
    subjects = [models.subject(name, CACHE / "models") for name in options.models]
    pythons: dict[str, Path] = {}
    for peer in peers.PEERS:
        if options.wants(peer.name):
            with _reported(results, peer.name):
                pythons[peer.name] = peers.python_of(peer, CACHE / "venvs", say)
    if options.wants_agent or options.wants("raw"):
        with _reported(results, MUSTER):
            pythons[MUSTER] = device.install(options.engine, CACHE, say)
    with ExitStack() as stack:
        devices: dict[str, Device] = {}
        for subject in subjects:
            if options.wants_agent and MUSTER in pythons:
                say(f"bringing {subject.name} to a new device")
                with _reported(results, f"{MUSTER}, {subject.name}"):
                    opened = Device.open(subject, options.engine, pythons[MUSTER], folder / subject.name)
                    stack.callback(opened.close)
                    devices[subject.name] = opened
        for number in range(1, options.rounds + 1):
            for subject in subjects:
                bench = _Bench(options, results, subject, pythons, folder, number)
                bench.round(devices.get(subject.name))
    if options.swap_s and options.wants(MUSTER) and MUSTER in pythons and "tiny" in options.models:
        say(f"{swap.SWAPS} hot swaps within {options.swap_s} s of load")
        with _reported(results, "hot swaps"):
            one, two = subjects[options.models.index("tiny")], models.subject("tiny", CACHE / "models", successor=True)
            results.swap = swap.run(one, two, pythons[MUSTER], options.swap_s, free_port(), _fresh(folder, "swap"))


@contextmanager
def _reported(results: Results, name: str) -> Iterator[None]:
    """One server that fails does not end the run: the report says why it has no figures."""
    try:
        yield
    except Exception as error:  # Whatever it is, an hour of figures is not to be lost for it.
        results.missing[name] = f"{type(error).__name__}: {error}"
        say(f"{name} failed: {error}")


class _Bench:
    """One round over one model."""

    def __init__(
        self,
        options: Options,
        results: Results,
        subject: Subject,
        pythons: dict[str, Path],
        folder: Path,
        number: int,
    ) -> None:
        self._options = options
        self._results = results
        self._subject = subject
        self._pythons = pythons
        self._folder = folder
        self._number = number
        self._seconds = options.seconds * (1 if subject.name == "tiny" else SLOW_FACTOR)
        self._example, self._expected = folder / f"{subject.name}.npy", folder / f"{subject.name}.expected.npy"
        np.save(self._example, subject.example)
        np.save(self._expected, subject.expected)

    def round(self, agent: Device | None) -> None:
        name, last = self._subject.name, self._options.rounds
        if self._options.wants("raw") and MUSTER in self._pythons:
            say(f"round {self._number}/{last} {name}: raw")
            with _reported(self._results, f"raw, {name}"):
                self._raw()
        if agent is not None:
            say(f"round {self._number}/{last} {name}: muster")
            with _reported(self._results, f"{MUSTER}, {name}"):
                self._muster(agent)
        for peer in peers.PEERS:
            if peer.name in self._pythons and name in peer.models:
                say(f"round {self._number}/{last} {name}: {peer.name}")
                with _reported(self._results, f"{peer.name}, {name}"):
                    self._peer(peer)

    def _raw(self) -> None:
        script = [str(self._pythons[MUSTER]), str(HERE / "raw.py"), self._options.engine]
        files = [str(self._subject.model_file), str(self._example)]
        began = time.perf_counter()
        with subprocess.Popen(
            [*script, *files, "--hold"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
        ) as holder:
            assert holder.stdin is not None
            assert holder.stdout is not None
            try:
                holder.stdout.readline()
                process = psutil.Process(holder.pid)
                self._started("raw", time.perf_counter() - began, process.memory_info().rss / 2**20)
                if self._number == 1 and self._options.idle_s:
                    self._idle("raw", process)
            finally:
                holder.stdin.close()
        for mode in raw.MODES:
            command = [*script, *files, "--mode", mode, "--seconds", str(self._seconds)]
            with _reported(self._results, f"{RAW[mode]}, {self._subject.name}"):
                done = subprocess.run(command, capture_output=True, text=True, timeout=self._seconds + 60, check=True)
                figures = json.loads(done.stdout)
                del figures["requests"]
                callers = {"2x1": 2, "b32": 32}.get(mode, 1)
                self._keep(
                    Figures(
                        server=RAW[mode],
                        model=self._subject.name,
                        round=self._number,
                        concurrency=callers,
                        **figures,
                    )
                )

    def _muster(self, agent: Device) -> None:
        server = agent.start()
        try:
            asked = ask(self._subject, "v2-binary")
            self._started(MUSTER, server.wait_answer(asked, self._subject, "v2-binary"), server.rss_mb())
            if self._number == 1 and self._options.idle_s:
                self._idle(MUSTER, psutil.Process(server.process.pid))
            if self._options.wants(MUSTER):
                self._http(server, MUSTER, asked, "v2-binary")
            for name, path in CLIENTS:
                if self._options.wants(name):
                    with _reported(self._results, f"{name}, {self._subject.name}"):
                        self._client(server, agent, name, path)
            if self._options.wants(JSON):
                self._http(server, JSON, ask(self._subject, "v2-json"), "v2-json")
        finally:
            server.stop()

    def _peer(self, peer: Peer) -> None:
        folder = _fresh(self._folder, f"{peer.name}-{self._subject.name}-{self._number}".replace(" ", "-"))
        port = free_port()
        command = peer.command(self._pythons[peer.name], self._subject, port, folder)
        asked = ask(self._subject, peer.form, peer.path)
        server = Server(peer.name, command, folder / "log", port=port)
        try:
            self._started(peer.name, server.wait_answer(asked, self._subject, peer.form), server.rss_mb())
            self._http(server, peer.name, asked, peer.form)
        finally:
            server.stop()

    def _http(self, server: Server, name: str, asked: Ask, form: Form) -> None:
        server.wait_answer(asked, self._subject, form)
        lua = wrk.script(asked, _fresh(self._folder, f"lua-{server.port}-{name}".replace(" ", "-")))
        wrk.run(lua, server.port, asked, 8, WARM_S)
        for concurrency in self._options.concurrencies:
            before_mb, cpu_s = server.rss_mb(), server.cpu_s()
            with PeakMemory(server) as peak:
                load = wrk.run(lua, server.port, asked, concurrency, self._seconds)
            spent_s = server.cpu_s() - cpu_s
            self._keep(
                Figures(
                    server=name,
                    model=self._subject.name,
                    round=self._number,
                    concurrency=concurrency,
                    rps=load.rps,
                    p50_us=load.p50_us,
                    p99_us=load.p99_us,
                    failed=load.failed,
                    cpu_s_per_1000=spent_s / max(1, load.requests) * 1000,
                    rss_before_mb=before_mb,
                    rss_peak_mb=peak.mb,
                    rss_after_mb=server.rss_mb(),
                )
            )

    def _client(self, server: Server, agent: Device, name: str, path: str) -> None:
        script = [str(agent.python), str(HERE / "load_client.py"), str(agent.socket), self._subject.name]
        script += [str(self._example), str(self._expected), "--path", path, "--seconds", str(self._seconds)]
        for concurrency in self._options.concurrencies:
            before_mb, cpu_s = server.rss_mb(), server.cpu_s()
            with PeakMemory(server) as peak:
                command = [*script, "--concurrency", str(concurrency)]
                done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
            if done.returncode != 0:
                reason = (done.stderr.strip().splitlines() or ["without a word"])[-1]
                raise ServerFailed(f"the client ended with {done.returncode}: {reason[:300]}")
            figures = json.loads(done.stdout)
            spent_s = server.cpu_s() - cpu_s
            requests = figures.pop("requests")
            self._keep(
                Figures(
                    server=name,
                    model=self._subject.name,
                    round=self._number,
                    concurrency=concurrency,
                    cpu_s_per_1000=spent_s / max(1, requests) * 1000,
                    rss_before_mb=before_mb,
                    rss_peak_mb=peak.mb,
                    rss_after_mb=server.rss_mb(),
                    **figures,
                )
            )

    def _idle(self, name: str, process: psutil.Process) -> None:
        time.sleep(3.0)  # What happens once after the start is not idling.
        before = process.cpu_times()
        time.sleep(self._options.idle_s)
        after = process.cpu_times()
        memory = process.memory_full_info()
        busy_s = (after.user + after.system) - (before.user + before.system)
        self._results.idle.append(
            Idle(
                server=name,
                model=self._subject.name,
                rss_mb=memory.rss / 2**20,
                uss_mb=memory.uss / 2**20,
                cpu=busy_s / self._options.idle_s,
            )
        )

    def _started(self, name: str, seconds: float, rss_mb: float) -> None:
        self._results.starts.append(Start(server=name, model=self._subject.name, seconds=seconds, rss_mb=rss_mb))

    def _keep(self, figures: Figures) -> None:
        if not math.isfinite(figures.rps):
            raise ServerFailed(f"{figures.server} gave no figures")
        self._results.figures.append(figures)


def _fresh(folder: Path, name: str) -> Path:
    fresh = folder / name
    fresh.mkdir()
    return fresh


if __name__ == "__main__":
    sys.exit(main())
