"""What a batch job costs: rows a second from .npy to .npy through the running agent, against the bare engine.

    python tests/bench/bench_batch.py [--rounds 3] [--count 1000000] [--version 2.0.0] [--rows N] [--json]

One real agent that serves digits, one `muster-agent batch` process. The bare engine is ONNX Runtime in one process with
the same model file, one thread and the same rows a call, over the same mapped array, its answers written as well; both
are taken in every round, in turn, so that a slow minute of the machine falls on both. Figures are medians. `engine`
is the share of the job's time that the agent's engine computed.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import psutil

sys.path.insert(0, str(Path(__file__).parents[1]))

from harness.digits_agent import DigitsAgent, bundle, digits_agent
from muster_agent.cli.asking import ask
from muster_agent.engines.registry import engine
from muster_shared.bundle import parse_manifest
from muster_simulator.workloads import digits

TIMEOUT_S = 600


def bare(folder: Path, version: str, source: Path, rows: int, out: Path) -> float:
    """Return the rows a second of the engine alone."""
    path = folder / "bundles" / version
    manifest = parse_manifest((path / "bundle.json").read_bytes())
    variant = next(each for each in manifest.variants if each.runtime == "onnxruntime")
    session = engine("onnxruntime").load(
        path / variant.files[0], variant, manifest.inputs, manifest.outputs, threads=1, cache_dir=folder
    )
    pixels = np.load(source, mmap_mode="r").reshape(-1, 1, 8, 8)
    session.run_arrays((np.ascontiguousarray(pixels[:rows]),))
    begin = time.perf_counter()
    with out.open("wb") as file:
        for at in range(0, len(pixels), rows):
            file.write(session.run_arrays((np.asarray(pixels[at : at + rows]),))[0].tobytes())
    took = time.perf_counter() - begin
    session.close()
    return len(pixels) / took


def job(agent: DigitsAgent, source: Path, out: Path, more: list[str]) -> dict[str, float]:
    """Return the summary of one batch job, with what the agent and its engine spent on it."""
    process = psutil.Process(agent.fleet.agent.process.pid)
    before, engine_us = process.cpu_times(), _engine_us(agent)
    command = [
        sys.executable,
        "-m",
        "muster_agent.cli",
        "batch",
        "digits",
        str(source),
        str(out),
        "--restart",
        "--json",
    ]
    ended = subprocess.run(
        [*command, "--endpoint", agent.endpoint, *more], capture_output=True, timeout=TIMEOUT_S, check=True
    )
    summary: dict[str, float] = json.loads(ended.stdout)
    after = process.cpu_times()
    summary["agent_cpu_s"] = after.user + after.system - before.user - before.system
    summary["engine_s"] = (_engine_us(agent) - engine_us) / 1e6
    return summary


def _engine_us(agent: DigitsAgent) -> int:
    counters = ask(agent.endpoint, "GET", "/v1/status")["models"]["digits"]["counters"]
    return int(counters["engine_us"])


def main() -> int:
    parser = argparse.ArgumentParser(description="What a batch job costs.")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--count", type=int, default=1_000_000)
    parser.add_argument("--version", default="2.0.0")
    parser.add_argument("--rows", type=int, nargs="*", default=[], help="a request; default: as the job chooses")
    parser.add_argument("--window", type=int, default=0, help="requests under way; default: as the job chooses")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    figures = []
    with tempfile.TemporaryDirectory(prefix="mb-") as name:
        folder = Path(name)
        source, out = folder / "in.npy", folder / "out.npy"
        images = digits.split().test_images.reshape(-1, 64)
        np.save(source, np.resize(images, (options.count, 64)))
        bundle(options.version, folder / "bundles")
        with digits_agent(folder, options.version) as agent:
            for rows in options.rows or [0]:
                more = ["--rows", str(rows)] if rows else []
                more += ["--window", str(options.window)] if options.window else []
                taken = []
                for _ in range(options.rounds):
                    through = job(agent, source, out, more)
                    rate = bare(folder, options.version, source, int(through["rows_per_request"]), folder / "bare.out")
                    taken.append((through, rate))
                figures.append(
                    {
                        "rows_per_request": taken[0][0]["rows_per_request"],
                        "batch_rows_per_s": statistics.median(job["rows_per_s"] for job, _ in taken),
                        "bare_rows_per_s": statistics.median(rate for _, rate in taken),
                        "ratio": statistics.median(job["rows_per_s"] / rate for job, rate in taken),
                        "engine_share": statistics.median(job["engine_s"] / job["seconds"] for job, _ in taken),
                        "agent_cpu_s": statistics.median(job["agent_cpu_s"] for job, _ in taken),
                        "seconds": statistics.median(job["seconds"] for job, _ in taken),
                    }
                )
    if options.json:
        print(json.dumps({"version": options.version, "count": options.count, "figures": figures}))
        return 0
    print(f"digits {options.version}, {options.count:,} rows; medians of {options.rounds}")
    print(f"{'rows a request':>14} {'batch':>12} {'bare':>12} {'ratio':>6} {'engine':>7} {'agent CPU':>10} {'took':>7}")
    for at in figures:
        print(
            f"{at['rows_per_request']:>14} {at['batch_rows_per_s']:>10,.0f}/s {at['bare_rows_per_s']:>10,.0f}/s"
            f" {at['ratio']:6.2f} {at['engine_share']:7.0%} {at['agent_cpu_s']:>8.1f} s {at['seconds']:>5.1f} s"
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
