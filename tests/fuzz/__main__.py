"""`make fuzz`: every target for its share of the time, a few processes at a time, and what they found.

    python -m fuzz [--minutes 60] [--processes 2] [--only NAME ...] [--replay FILE ...] [--folder .cache/fuzz]

Exit code 1: something was found, now or before, that is still there. Workers do the fuzzing; here they are started,
given a deadline and ended, each by its own process id.
"""

import argparse
import json
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from fuzz.every import NAMES, target
from fuzz.target import execute

SLICE_S = 300  # Of one worker at most: a target that dies early loses no more than this.
START_S = 120  # To import everything with instruments, on a busy machine.


@dataclass(frozen=True)
class Ran:
    name: str
    executions: int
    guided: bool
    failure: str = ""


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="make fuzz ARGS=", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--minutes", type=float, default=60.0)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--only", nargs="*", default=list(NAMES), choices=NAMES, metavar="NAME")
    parser.add_argument("--replay", nargs="*", type=Path, metavar="FILE", help=".../NAME/file: run that one input")
    parser.add_argument("--folder", type=Path, default=Path(".cache/fuzz"))
    given = parser.parse_args(arguments)
    if given.replay:
        return max(_replay(path) for path in given.replay)
    total = _campaign(given.only, given.minutes * 60, given.processes, given.folder)
    found = sorted((given.folder / "findings").glob("*/*"))
    remaining = [path for path in found if path.suffix != ".txt" and _replay(path)]
    print(f"{total:,} executions of {len(given.only)} targets; {len(remaining)} findings", flush=True)
    for path in remaining:
        print(f"  {path}: replay with `make fuzz ARGS='--replay {path}'`;", flush=True)
        print(f"    when it is mended, keep it as tests/fuzz/regressions/{path.parent.name}/{path.name}", flush=True)
    return 1 if remaining else 0


def _campaign(names: list[str], seconds: float, processes: int, folder: Path) -> int:
    """Give every target its share, in rounds. Return how often they were executed."""
    share = seconds * processes / len(names)
    rounds = max(1, round(share / SLICE_S))
    slice_s = max(5, int(share / rounds))
    total = 0
    print(f"{len(names)} targets, {rounds} rounds of {slice_s} s each, {processes} at a time", flush=True)
    with ThreadPoolExecutor(processes) as pool:
        for number in range(rounds):
            for ran in pool.map(lambda name: _work(name, slice_s, folder), names):
                total += ran.executions
                how = "guided" if ran.guided else "at random"
                at = time.strftime("%H:%M:%S")
                print(f"{at} {number + 1}/{rounds} {ran.name}: {ran.executions:,} {how} {ran.failure}", flush=True)
    return total


def _work(name: str, seconds: int, folder: Path) -> Ran:
    folder.mkdir(parents=True, exist_ok=True)
    log = folder / f"{name}.log"
    command = [sys.executable, "-m", "fuzz.worker", name, str(seconds), str(folder)]
    with log.open("wb") as errors:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=errors)
        try:
            said, _ = process.communicate(timeout=seconds + START_S)
        except subprocess.TimeoutExpired:
            process.kill()
            said, _ = process.communicate()
    executions, guided = 0, False
    for line in said.splitlines():
        if line.startswith(b'{"executions"'):
            told = json.loads(line)
            executions, guided = int(told["executions"]), bool(told["guided"])
    failed = process.returncode != 0
    return Ran(name, executions, guided, f"ended with {process.returncode}, see {log}" if failed else "")


def _replay(path: Path) -> int:
    found = execute(target(path.parent.name), path.read_bytes())
    if found is not None:
        print(f"{path}: {found.kind}\n{found.detail}", flush=True)
    return 0 if found is None else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
