"""`python -m bench.rollout [--histories 1000] [--seed 1] [--jobs 2] [--only exposure,ramp] [--quick] [--json FILE]`

Runs every part, prints its tables, then all figures that have a target: PASS or MISS. Ends with 1 if one was missed.
The same seed gives the same figures, however many processes work.
"""

import argparse
import sys

from bench import parts
from bench.rollout import exposure, ramp, ramp_in_fleet, reaction
from bench.rollout.figures import Options

PARTS: dict[str, parts.Part] = {
    "exposure": exposure.run,
    "ramp": ramp.run,
    "fleet": ramp_in_fleet.run,
    "reaction": reaction.run,
}
QUICK_HISTORIES = 100


def main() -> int:
    parser = argparse.ArgumentParser(prog="bench.rollout", description="Our gate and its peers' on the same histories.")
    parser.add_argument("--histories", type=int, default=None, help="of every scenario; 1000, or 100 with --quick")
    parts.arguments(parser, PARTS, "too few histories")
    given = parser.parse_args()
    chosen = parts.chosen(parser, PARTS, given.only)
    options = Options(
        histories=given.histories or (QUICK_HISTORIES if given.quick else Options.histories),
        seed=given.seed,
        jobs=given.jobs,
        quick=given.quick,
    )
    return parts.run(chosen, options, f"{options.histories:,} histories, seed {options.seed}", given.json)


if __name__ == "__main__":
    sys.exit(main())
