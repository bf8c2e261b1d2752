"""What an idle agent costs above the bare engine: resident memory, CPU while idle, cold start.

    python tests/bench/bench_agent.py [--idle-s 20] [--json]

Both processes load the same model with one thread and are asked once; the bare one is the engine and numpy alone.
Resident memory is RSS and USS after the idle time; the ratio and the difference are taken in the same run.
"""

import argparse
import http.client
import json
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import psutil

sys.path.insert(0, str(Path(__file__).parents[1]))

from harness.fleet_of_one import Agent, Fleet, Works, free_port
from muster_controller.broker.embedded import BrokerKind, start_broker
from muster_shared.bundle import Runtime
from muster_shared.ids import FleetId, ModelName
from muster_shared.messages import Step
from muster_simulator.workloads import catalogue
from muster_simulator.workloads.spec import ReleaseSpec, write_release

CACHE = Path(__file__).parents[2] / ".cache" / "weights"

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
    uss_mb: float
    start_s: float
    idle_cpu: float


def bare(runtime: Runtime, model: Path, idle_s: float) -> Cost:
    """Measure the engine alone."""
    began = time.perf_counter()
    command = [sys.executable, "-c", _BARE[runtime] + _WAIT, str(model)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
        assert process.stdout is not None
        assert process.stdin is not None
        assert process.stdout.readline() == b"ready\n"
        start_s = time.perf_counter() - began
        try:
            return measure(process.pid, start_s, idle_s)
        finally:
            process.stdin.close()


def agent(works: Works, spec: ReleaseSpec, runtime: Runtime, idle_s: float, folder: Path) -> Cost:
    """Measure an agent that serves `spec`, connected to a broker, started again after the release was committed."""
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
            began = time.perf_counter()
            fleet.agent = Agent.start(folder / "device", broker_url=broker.url)
            wait_ready(fleet.agent.port)
            return measure(fleet.agent.process.pid, time.perf_counter() - began, idle_s)
        finally:
            fleet.close()


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


def measure(pid: int, start_s: float, idle_s: float) -> Cost:
    process = psutil.Process(pid)
    time.sleep(3.0)  # What happens once after the start is not idling.
    before = process.cpu_times()
    time.sleep(idle_s)
    after = process.cpu_times()
    busy_s = (after.user + after.system) - (before.user + before.system)
    memory = process.memory_full_info()
    return Cost(memory.rss / 2**20, memory.uss / 2**20, start_s, busy_s / idle_s)


def main() -> int:
    parser = argparse.ArgumentParser(description="What an idle agent costs above the bare engine.")
    parser.add_argument("--idle-s", type=float, default=20.0)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    results = []
    with tempfile.TemporaryDirectory(prefix="muster-bench-") as name:
        folder = Path(name)
        for model in (ModelName("digits"), ModelName("magika")):
            spec = next(spec for spec in catalogue.releases(model, CACHE) if spec.version == "2.0.0")
            write_release(spec, folder / model)
            for runtime in _BARE:
                assert runtime in ("onnxruntime", "openvino")
                variant = next(each for each in spec.variants if each.runtime == runtime and each.precision == "fp32")
                (folder / f"works-{model}-{runtime}").mkdir()
                works = Works.open(folder / f"works-{model}-{runtime}", [model])
                alone = bare(runtime, folder / model / variant.files[0], options.idle_s)
                whole = agent(works, spec, runtime, options.idle_s, folder / f"agent-{model}-{runtime}")
                results.append({"model": model, "engine": runtime, "bare": asdict(alone), "agent": asdict(whole)})
                if not options.json:
                    print_row(model, runtime, alone, whole)
    if options.json:
        print(json.dumps({"cores": os.cpu_count(), "idle_s": options.idle_s, "results": results}))
    return 0


def print_row(model: str, runtime: str, alone: Cost, whole: Cost) -> None:
    print(f"{model} on {runtime}")
    for name, unit in (("rss_mb", "MiB"), ("uss_mb", "MiB"), ("start_s", "s")):
        one, other = getattr(alone, name), getattr(whole, name)
        compared = f"difference {other - one:+7.2f}  ratio {other / one:.2f}"
        print(f"  {name:8} agent {other:8.2f}  bare {one:8.2f} {unit:4} {compared}")
    print(f"  idle CPU agent {whole.idle_cpu:.2%} of a core, bare {alone.idle_cpu:.2%}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
