"""`python -m bench.metrics [--only cost,drift] [--quick] [--seed 1] [--jobs 2] [--json FILE]`

Runs every part, then prints all figures: PASS or MISS where there is a target. Ends with 1 if one was missed.
"""

import argparse
import sys

from bench import parts
from bench.metrics import accuracy, cost, drift, mixer
from bench.rollout.figures import Options

PARTS: dict[str, parts.Part] = {
    "cost": cost.run,
    "drift": drift.run,
    "accuracy": accuracy.run,
    "mixer": mixer.run,
}


def main() -> int:
    parser = argparse.ArgumentParser(prog="bench.metrics", description="What anonymous metrics cost, and can tell.")
    parts.arguments(parser, PARTS, "too little")
    given = parser.parse_args()
    chosen = parts.chosen(parser, PARTS, given.only)
    options = Options(seed=given.seed, jobs=given.jobs, quick=given.quick)
    return parts.run(chosen, options, f"seed {options.seed}", given.json)


if __name__ == "__main__":
    sys.exit(main())
