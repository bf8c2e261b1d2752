"""The warm-up: what one inference costs on this device before anything depends on it.

It judges nothing: `golden` says whether the answers are right, `serving.rooms` what to do with the figure.
"""

import time
from itertools import islice
from pathlib import Path

from muster_agent.engines.golden import load_cases, walk
from muster_agent.engines.port import Session
from muster_shared.bundle import Manifest

COLD_RUNS = 3  # The first calls allocate and choose kernels; they say nothing about the next thousand.


def warm_up(
    session: Session, manifest: Manifest, golden_file: Path, *, runs: int = 20, seconds_max: float = 60.0
) -> float:
    """Run golden inputs, one case a call, and return the 95th percentile of the latency in ms.

    Args:
        runs: Timed calls, >= 1, after COLD_RUNS untimed ones.
        seconds_max: After so much it ends, with two calls at least, of which the second is timed.
    Raises:
        EngineError: the golden cases cannot be read, or the session fails on them.
    """
    cases = load_cases(golden_file, manifest)
    latencies_ms: list[float] = []
    begun = time.perf_counter()
    for inputs in islice(walk(cases, manifest.inputs), COLD_RUNS + runs):
        start = time.perf_counter()
        session.run(inputs)
        ended = time.perf_counter()
        latencies_ms.append((ended - start) * 1e3)
        if ended - begun > seconds_max and len(latencies_ms) > 1:
            break
    timed = sorted(latencies_ms[COLD_RUNS:] or latencies_ms[-1:])
    return timed[min(len(timed) - 1, int(0.95 * len(timed)))]
