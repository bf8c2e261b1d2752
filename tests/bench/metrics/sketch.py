"""How large a sketch of latencies is, and how far off what is read from it."""

import math
from statistics import median

import numpy as np

from bench.rollout.figures import Line, Options
from muster_agent.core import latency
from muster_shared.metrics import pack

LATENCIES = 1000
SKETCH_BYTES_MAX = 150
SKETCHES = 200


def lines(options: Options) -> list[Line]:
    """LATENCIES log-normal latencies (median 5 ms, sigma 0.5), on the device's grid of 16 buckets a doubling."""
    rng = np.random.default_rng(options.seed)
    sizes: list[int] = []
    errors: dict[float, list[float]] = {0.5: [], 0.95: [], 0.99: []}
    for _ in range(SKETCHES):
        us = rng.lognormal(math.log(5000), 0.5, LATENCIES)
        counts: dict[int, int] = {}
        for one in us.tolist():
            place = latency.bucket(one)
            counts[place] = counts.get(place, 0) + 1
        sizes.append(len(pack(counts)))
        for share, found in errors.items():
            true_ms = float(np.quantile(us, share, method="inverted_cdf")) / 1e3
            sketched_ms = latency.quantile_ms(sorted(counts.items()), share)
            assert sketched_ms is not None
            found.append(abs(sketched_ms / true_ms - 1))
    found_lines = [
        Line(
            f"sketch of {LATENCIES:,} latencies",
            f"<= {SKETCH_BYTES_MAX} bytes",
            f"{median(sizes):.0f} bytes",
            max(sizes) <= SKETCH_BYTES_MAX,
            f"{min(sizes)} to {max(sizes)}",
        )
    ]
    for share, found in errors.items():
        found_lines.append(
            Line(
                f"its relative error at p{share * 100:.0f}", "", f"{median(found):.1%}", None, f"up to {max(found):.1%}"
            )
        )
    return found_lines
