"""`python -m bench.metrics [--only cost,drift] [--quick] [--seed 1] [--jobs 2] [--json FILE]`

Runs every part that is there, then prints all figures: PASS or MISS where there is a target. Ends with 1 if one was
missed.
"""

import argparse
import importlib.util
import json
import sys
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

from bench.rollout.figures import OUT, Line, Options, show

PARTS = ("cost", "drift", "accuracy", "mixer", "series")


def main() -> int:
    there = [name for name in PARTS if importlib.util.find_spec(f"bench.metrics.{name}") is not None]
    parser = argparse.ArgumentParser(prog="bench.metrics", description="What anonymous metrics cost, and can tell.")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--jobs", type=int, default=2, help="processes")
    parser.add_argument("--only", default=",".join(there), help=f"parts: {', '.join(there)}")
    parser.add_argument("--quick", action="store_true", help="a look in a minute; too little to judge by")
    parser.add_argument("--json", type=Path, help="write all figures there")
    given = parser.parse_args()
    chosen = [name.strip() for name in given.only.split(",") if name.strip()]
    if unknown := sorted(set(chosen) - set(there)):
        parser.error(f"no such parts: {', '.join(unknown)}; there are {', '.join(there)}")
    options = Options(seed=given.seed, jobs=given.jobs, quick=given.quick)
    figures: dict[str, list[Line]] = {}
    for name in chosen:
        run: Callable[[Options], list[Line]] = importlib.import_module(f"bench.metrics.{name}").run
        began_s = time.monotonic()
        figures[name] = run(options)
        OUT.print(f"\n{name}: seed {options.seed}, {time.monotonic() - began_s:.0f} s")
        show(figures[name])
    if given.json is not None:
        document = {"options": asdict(options), "parts": {n: [asdict(x) for x in xs] for n, xs in figures.items()}}
        given.json.write_text(json.dumps(document, indent=1))
    missed = [line.name for lines in figures.values() for line in lines if line.passed is False]
    OUT.print(f"\nMISS: {'; '.join(missed)}" if missed else "\nall targets PASS")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
