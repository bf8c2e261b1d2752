"""One target for some time, in a process of its own: guided by coverage where atheris is installed, else at random.

    worker NAME SECONDS FOLDER      FOLDER/corpus/NAME grows, findings go to FOLDER/findings/NAME

It prints one line of JSON at its end: executions, and whether coverage guided it. An input that hangs or kills it is
left in FOLDER/findings/NAME as well, by libFuzzer. It chooses no targets and does not judge whether a finding is new.
"""

import hashlib
import json
import logging
import os
import sys
import time
from contextlib import suppress
from pathlib import Path
from random import Random

import structlog

from fuzz.every import target
from fuzz.mutation import mutate
from fuzz.target import Finding, Target, execute

HANGS_S = 60  # Of wall time: the oracle's own budget is processor time, and much less.
MEMORY_MB = 3072


class Run:
    """What one run has done so far."""

    def __init__(self, target: Target, folder: Path) -> None:
        self.target = target
        self.findings = folder / "findings" / target.name
        self.corpus = folder / "corpus" / target.name
        self.corpus.mkdir(parents=True, exist_ok=True)
        self.executions = 0
        self._kinds: set[str] = set()

    def one(self, data: bytes) -> None:
        self.executions += 1
        found = execute(self.target, data)
        if found is not None and found.kind not in self._kinds:
            self._kinds.add(found.kind)
            self._keep(data, found)

    def _keep(self, data: bytes, found: Finding) -> None:
        """Keep the first input of each kind: the next thousand say nothing new."""
        self.findings.mkdir(parents=True, exist_ok=True)
        name = hashlib.sha256(found.kind.encode()).hexdigest()[:12]
        path = self.findings / f"{name}.bin"
        if not path.exists():
            path.write_bytes(data)
            path.with_suffix(".txt").write_text(f"{found.kind}\n{found.detail}\n", encoding="utf-8")

    def say(self, guided: bool) -> None:
        print(json.dumps({"executions": self.executions, "guided": guided}), flush=True)


def main(name: str, seconds: int, folder: Path) -> int:
    logging.disable()
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))
    try:
        import atheris  # type: ignore[import-untyped, import-not-found, unused-ignore]  # Optional; it has no types.
    except ImportError:
        _at_random(Run(target(name), folder), seconds)
        return 0
    ours = ["muster_shared", "muster_agent", "muster_controller"]
    with atheris.instrument_imports(include=ours, enable_loader_override=False):
        run = Run(target(name), folder)
    seeds = list(run.target.seeds())
    for number, seed in enumerate(seeds):
        (run.corpus / f"seed-{number}").write_bytes(seed)

    def mutator(data: bytes, max_size: int, seed: int) -> bytes:
        random = Random(seed)
        if random.random() < 0.2:
            changed: bytes = atheris.Mutate(data, max_size)
            return changed
        return mutate(data, seeds, run.target.words, min(max_size, run.target.bytes_max), random)

    run.findings.mkdir(parents=True, exist_ok=True)
    arguments = [
        sys.argv[0],
        str(run.corpus),
        f"-max_total_time={seconds}",
        f"-max_len={run.target.bytes_max}",
        f"-timeout={HANGS_S}",
        f"-rss_limit_mb={MEMORY_MB}",
        f"-artifact_prefix={run.findings}/",
        "-len_control=0",
        "-reload=0",
        "-verbosity=0",
        "-print_final_stats=0",
    ]
    # libFuzzer ends the process by itself, without Python's farewell: the word is said when the time is nearly over.
    until = time.monotonic() + seconds - 1.0
    said = False

    def one(data: bytes) -> None:
        nonlocal said
        run.one(data)
        if not said and time.monotonic() >= until:
            said = True
            run.say(guided=True)

    atheris.Setup(arguments, one, custom_mutator=mutator)
    atheris.Fuzz()
    return 0


def _at_random(run: Run, seconds: int) -> None:
    random = Random(time.time_ns())
    seeds = list(run.target.seeds())
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        run.one(mutate(random.choice(seeds), seeds, run.target.words, run.target.bytes_max, random))
    run.say(guided=False)


if __name__ == "__main__":
    with suppress(OSError):
        os.nice(5)
    sys.exit(main(sys.argv[1], int(sys.argv[2]), Path(sys.argv[3])))
