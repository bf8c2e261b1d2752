"""What an idle agent costs above the bare engine: resident memory, CPU while idle, cold start.

    python tests/bench/bench_agent.py [--python PATH] [--starts N] [--idle-s 20] [--json]

Both processes load the same model with one thread and are asked once; the bare one is the engine and numpy alone. They
start in turns, N times each (the median counts, the best is printed too); then each idles alone. Memory is RSS, PSS and
USS after the idle time, of the agent with whatever processes it has; this one holds some of the same libraries, which
lowers PSS alike.

`--python` names the interpreter of a device, with nothing installed but the agent and its engines: what a workspace has
besides (rich, for one) is imported by libraries that find it.
"""

import argparse
import http.client
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import psutil

sys.path.insert(0, str(Path(__file__).parents[1]))

from harness.fleet_of_one import Fleet, Works, free_port
from muster_controller.broker.embedded import BrokerKind, start_broker
from muster_shared.bundle import Runtime
from muster_shared.ids import FleetId, ModelName
from muster_shared.messages import Step
from muster_simulator.workloads import catalogue
from muster_simulator.workloads.spec import ReleaseSpec, write_release

CACHE = Path(__file__).parents[2] / ".cache" / "weights"
RUNTIMES: tuple[Runtime, ...] = ("onnxruntime", "openvino")
SETTLE_S = 8.0

_BARE = {
    "onnxruntime": """
import sys, numpy as np, onnxruntime as ort
options = ort.SessionOptions()
options.intra_op_num_threads = 1
options.add_session_config_entry("session.intra_op.allow_spinning", "0")
session = ort.InferenceSession(sys.argv[1], options, providers=["CPUExecutionProvider"])
kind = {"tensor(float)": np.float32, "tensor(int32)": np.int32}[session.get_inputs()[0].type]
shape = [1 if not isinstance(size, int) else size for size in session.get_inputs()[0].shape]
session.run(None, {session.get_inputs()[0].name: np.zeros(shape, kind)})
""",
    "openvino": """
import sys, numpy as np, openvino as ov
core = ov.Core()
model = core.compile_model(sys.argv[1], "CPU", {"INFERENCE_NUM_THREADS": 1, "INFERENCE_PRECISION_HINT": "f32"})
request = model.create_infer_request()
port = model.inputs[0]
shape = [1 if size.is_dynamic else size.get_length() for size in port.partial_shape]
request.infer({0: np.zeros(shape, port.element_type.to_dtype())})
""",
}
_WAIT = "\nprint('ready', flush=True)\nsys.stdin.read()\n"


@dataclass(frozen=True)
class Cost:
    """Of one process. Memory in MiB, start from spawn to the first answer, CPU as a share of one core."""

    rss_mb: float
    pss_mb: float
    uss_mb: float
    start_s: float
    start_s_min: float
    start_cpu_s: float
    """Of all threads, the median; the one figure of a start that a busy machine does not change much."""
    idle_cpu: float


@dataclass(frozen=True)
class Started:
    """A process that has answered once."""

    pid: int
    start_s: float
    cpu_s: float
    stop: Callable[[], None]


@dataclass(frozen=True)
class Python:
    """An interpreter and the folder of its bytecode: what was installed has been compiled, what is edited has not."""

    path: str
    cache: Path

    def environment(self) -> dict[str, str]:
        kept = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
        return kept | {"PYTHONPYCACHEPREFIX": str(self.cache)}


def start_bare(python: Python, runtime: Runtime, model: Path) -> Started:
    """Start the engine alone."""
    command = [python.path, "-c", _BARE[runtime] + _WAIT, str(model)]
    began = time.perf_counter()
    process = subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env=python.environment(),
    )
    assert process.stdout is not None
    assert process.stdin is not None
    assert process.stdout.readline() == b"ready\n"
    start_s = time.perf_counter() - began

    def stop() -> None:
        process.communicate(timeout=20)

    return Started(process.pid, start_s, cpu_s(process.pid), stop)


def start_agent(python: Python, device: Path, broker_url: str) -> Started:
    """Start an agent on what a device holds, in the way that its service does."""
    port = free_port()
    environment = {
        **python.environment(),
        "MUSTER_AGENT_BROKER_URL": broker_url,
        "MUSTER_AGENT_HTTP_LISTEN": f"127.0.0.1:{port}",
    }
    command = [python.path, "-m", "muster_agent.cli", "run", "--config", str(device / "agent.toml")]
    with (device / "agent.log").open("ab") as output:
        began = time.perf_counter()
        process = subprocess.Popen(command, stderr=output, env=environment)
    wait_ready(port)
    start_s = time.perf_counter() - began

    def stop() -> None:
        process.terminate()
        process.wait(20)

    return Started(process.pid, start_s, cpu_s(process.pid), stop)


@contextmanager
def device(works: Works, spec: ReleaseSpec, runtime: Runtime, folder: Path) -> Iterator[tuple[Path, str]]:
    """Make a device that has committed `spec`, and the broker of its fleet; give its folder and the broker's URL."""
    folder.mkdir()
    with start_broker(BrokerKind.AUTO, folder / "broker", free_port()) as broker:
        broker.wait_ready(20.0)
        (folder / "device").mkdir()
        fleet = Fleet(works, broker, FleetId("bench"), folder / "device", runtime)
        try:
            release = works.publish(folder.parent / spec.model)
            fleet.assign(1, release)
            fleet.wait_for_step(release, Step.COMMITTED)
            fleet.agent.stop()
            yield folder / "device", broker.url
        finally:
            fleet.close()


def compare(bare: Callable[[], Started], agent: Callable[[], Started], starts: int, idle_s: float) -> list[Cost]:
    """Return the cost of the bare engine and of the agent."""
    kinds = (bare, agent)
    taken: list[list[Started]] = [[], []]
    for start in kinds:
        start().stop()  # This one compiles, and warms what the disk keeps in memory.
    for _ in range(starts):
        for start, each in zip(kinds, taken, strict=True):
            each.append(start())
            each[-1].stop()
    costs = []
    for start, each in zip(kinds, taken, strict=True):
        started = start()
        try:
            costs.append(measure(started.pid, each, idle_s))
        finally:
            started.stop()
    return costs


def wait_ready(port: int) -> None:
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
        try:
            connection.request("GET", "/v2/health/ready")
            if connection.getresponse().status == 200:
                return
        except OSError:
            pass
        finally:
            connection.close()
        time.sleep(0.005)
    raise TimeoutError("the agent did not become ready within 30 s")


def measure(pid: int, starts: list[Started], idle_s: float) -> Cost:
    process = psutil.Process(pid)
    time.sleep(SETTLE_S)  # What happens once after the start is not idling.
    before_s = cpu_s(pid)
    time.sleep(idle_s)
    busy_s = cpu_s(pid) - before_s
    held = [each.memory_full_info() for each in (process, *process.children(recursive=True))]
    rss, pss, uss = (sum(getattr(memory, name) for memory in held) / 2**20 for name in ("rss", "pss", "uss"))
    taken_s = [each.start_s for each in starts]
    return Cost(
        rss_mb=rss,
        pss_mb=pss,
        uss_mb=uss,
        start_s=statistics.median(taken_s),
        start_s_min=min(taken_s),
        start_cpu_s=statistics.median(each.cpu_s for each in starts),
        idle_cpu=busy_s / idle_s,
    )


def cpu_s(pid: int) -> float:
    """Return what `pid` has used, and the children it has waited for: idling must not mean to have others work."""
    times = psutil.Process(pid).cpu_times()
    return float(times.user + times.system + times.children_user + times.children_system)


def main() -> int:
    parser = argparse.ArgumentParser(description="What an idle agent costs above the bare engine.")
    parser.add_argument("--python", default=sys.executable, help="interpreter of both processes; default: this one")
    parser.add_argument("--starts", type=int, default=5, help="of each, in turns; default: 5")
    parser.add_argument("--idle-s", type=float, default=20.0)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    results = []
    with tempfile.TemporaryDirectory(prefix="muster-bench-") as name:
        folder = Path(name)
        python = Python(options.python, folder / "bytecode")
        for model in (ModelName("digits"), ModelName("magika")):
            spec = next(spec for spec in catalogue.releases(model, CACHE) if spec.version == "2.0.0")
            write_release(spec, folder / model)
            for runtime in RUNTIMES:
                variant = next(each for each in spec.variants if each.runtime == runtime and each.precision == "fp32")
                (folder / f"works-{model}-{runtime}").mkdir()
                works = Works.open(folder / f"works-{model}-{runtime}", [model])
                with device(works, spec, runtime, folder / f"agent-{model}-{runtime}") as (at, broker_url):
                    alone, whole = compare(
                        partial(start_bare, python, runtime, folder / model / variant.files[0]),
                        partial(start_agent, python, at, broker_url),
                        options.starts,
                        options.idle_s,
                    )
                results.append({"model": model, "engine": runtime, "bare": asdict(alone), "agent": asdict(whole)})
                if not options.json:
                    print_row(model, runtime, alone, whole)
    if options.json:
        print(json.dumps({"cores": os.cpu_count(), "idle_s": options.idle_s, "results": results}))
    return 0


def print_row(model: str, runtime: str, alone: Cost, whole: Cost) -> None:
    print(f"{model} on {runtime}")
    times = (("start_s", "s"), ("start_s_min", "s"), ("start_cpu_s", "s"))
    for name, unit in (("rss_mb", "MiB"), ("pss_mb", "MiB"), ("uss_mb", "MiB"), *times):
        one, other = getattr(alone, name), getattr(whole, name)
        compared = f"difference {other - one:+7.2f}  ratio {other / one:.2f}"
        print(f"  {name:11} agent {other:8.2f}  bare {one:8.2f} {unit:4} {compared}")
    print(f"  idle CPU agent {whole.idle_cpu:.2%} of a core, bare {alone.idle_cpu:.2%}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
