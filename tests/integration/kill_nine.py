"""SIGKILL at random moments of real updates on a real agent process; after each, a runnable model must answer.

    python tests/integration/kill_nine.py --kills 200 [--seed 1] [--json]

Each round assigns a release that is in no slot (so it is fetched, tested, switched and watched), kills the agent
after a random moment, reads from the journal in which phase it died, starts it again and asks it for an inference over
HTTP: the answer must be that of the release before, or of the new one. Power loss is for the simulator.
"""

import argparse
import json
import os
import random
import sqlite3
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from harness.fleet_of_one import Agent, Fleet, Works, free_port, wait_until
from muster_controller.broker.embedded import BrokerKind, start_broker
from muster_shared.assignment import Watch
from muster_shared.ids import FleetId, RolloutId
from muster_shared.messages import ReleaseRef, Step

RELEASES = 4  # More than slots, so that each update is a download.
SPAN_S = 0.8  # About from assignment to commit on this class of machine.
WEIGHT_CHUNKS = 400  # Small ones, so that fetching takes its time.


@dataclass
class Tally:
    """What happened."""

    kills: int = 0
    answered_by_previous: int = 0
    answered_by_new: int = 0
    phases: Counter[str] = field(default_factory=Counter)
    """Where the update stood when the agent was killed, by the journal it left."""
    slowest_answer_s: float = 0.0


def run(kills: int, seed: int, folder: Path, *, progress: bool = False) -> Tally:
    """Kill an agent `kills` times.

    Raises:
        AssertionError: an answer that is of neither release.
        TimeoutError: no answer at all.
    """
    rng = random.Random(seed)
    tally = Tally()
    (folder / "works").mkdir()
    (folder / "device").mkdir()
    works = Works.open(folder / "works")
    with start_broker(BrokerKind.AUTO, folder / "broker", free_port()) as broker:
        broker.wait_ready(20.0)
        fleet = Fleet(works, broker, FleetId("kill-nine"), folder / "device")
        try:
            releases = [
                works.release(f"1.{number}.0", factor=float(2 + number), weight_chunks=WEIGHT_CHUNKS)
                for number in range(RELEASES)
            ]
            counter, serving = 1, 0
            fleet.assign(counter, releases[serving])
            fleet.wait_for_step(releases[serving], Step.COMMITTED)
            while tally.kills < kills:
                counter += 1
                wanted = (serving + 1) % RELEASES
                fleet.assign(counter, releases[wanted], watch=_watch(counter))
                time.sleep(rng.uniform(0.0, SPAN_S))
                fleet.agent.kill()
                tally.kills += 1
                tally.phases[_phase(folder / "device" / "data" / "journal.sqlite")] += 1
                started = time.monotonic()
                fleet.agent = Agent.start(folder / "device", broker_url=broker.url)
                answer = fleet.answer()
                tally.slowest_answer_s = max(tally.slowest_answer_s, time.monotonic() - started)
                expected = {_answer(serving): "previous", _answer(wanted): "new"}
                assert tuple(answer) in expected, f"kill {tally.kills}: {answer} is of neither {expected}"
                if expected[tuple(answer)] == "new":
                    tally.answered_by_new += 1
                else:
                    tally.answered_by_previous += 1
                _settle(fleet, releases[wanted], wanted)
                serving = wanted
                if progress:
                    print(f"\r{tally.kills}/{kills} kills, phases {dict(tally.phases)}", end="", file=sys.stderr)
            return tally
        finally:
            if progress:
                print(file=sys.stderr)
            fleet.close()


def _settle(fleet: Fleet, release: ReleaseRef, wanted: int) -> None:
    """Wait until the update that was cut short has come to its end by itself."""
    wait_until(lambda: tuple(fleet.answer()) == _answer(wanted), lambda: f"never came to {release.version}")


def _answer(number: int) -> tuple[float, ...]:
    return (float(2 + number), 2 * float(2 + number))


def _watch(counter: int) -> Watch:
    return Watch(
        rollout=RolloutId(f"kill-{counter}"), wave=0, window_s=0.3, window_max_s=0.6, requests_min=0, deadline_s=60
    )


def _phase(journal: Path) -> str:
    """Return the phase of the update in a journal that nobody holds open any more."""
    connection = sqlite3.connect(f"file:{journal}?mode=ro", uri=True)
    try:
        row = connection.execute("SELECT body FROM state").fetchone()
    finally:
        connection.close()
    models = json.loads(row[0])["models"] if row is not None else {}
    update = next((model["update"] for model in models.values()), None)
    return "idle" if update is None else str(update["phase"])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--seed", type=int, default=int.from_bytes(os.urandom(4), "big"))
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    print(f"seed {options.seed}", file=sys.stderr)
    with tempfile.TemporaryDirectory(prefix="muster-kill-nine-") as folder:
        tally = run(options.kills, options.seed, Path(folder), progress=True)
    result = {
        "seed": options.seed,
        "kills": tally.kills,
        "answered": tally.answered_by_previous + tally.answered_by_new,
        "by_previous": tally.answered_by_previous,
        "by_new": tally.answered_by_new,
        "killed_in": dict(sorted(tally.phases.items())),
        "slowest_answer_s": round(tally.slowest_answer_s, 2),
    }
    print(json.dumps(result) if options.json else "\n".join(f"{key:18} {value}" for key, value in result.items()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
