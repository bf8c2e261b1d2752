"""Rehearsals for the page: what would come of a policy, tried many times in virtual time before anybody presses start.

The machine that rehearses is another distribution's (muster-simulator), which nothing here imports: it is asked as
people ask it, by `muster rollout simulate`, in a process of its own with a deadline. One at a time; answers are kept.
"""

import subprocess
import sys
import tempfile
import threading
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import entry_points
from pathlib import Path

import msgspec

from muster_controller.core.policy import Policy
from muster_controller.policy_document import dump

COMMAND = "rollout.simulate"
"""Its entry point in the group `muster.commands`."""
SCENARIOS = ("good", "failing", "bricks", "slower")
DEVICES_MAX = 500  # More take longer than a person waits; a fleet of the same mix answers nearly as well.
RUNS_DEVICES = 6_000  # Runs times devices of a scenario: two seconds or so of one processor for all of them.
RUNS_MIN, RUNS_MAX = 8, 40
TIMEOUT_S = 25.0
ANSWER_BYTES_MAX = 4 * 1024 * 1024
KEPT_MAX = 64
_SAID_MAX = 600


class Chance(msgspec.Struct, frozen=True):
    """A share of runs with its 95 % interval, 0..1."""

    share: float
    low: float
    high: float
    runs: int
    of: int


class Spread(msgspec.Struct, frozen=True):
    median: float
    p90: float


class Outcome(msgspec.Struct, frozen=True):
    """One scenario: what the release would be like, and what came of it."""

    name: str
    title: str
    is_harmless: bool
    runs: int
    aborted: Chance
    paused: Chance
    finished: Chance
    unfinished: Chance
    exposed: Spread
    harmed: Spread
    to_finish_s: Spread | None
    to_stop_s: Spread | None


@dataclass(frozen=True)
class Rehearsal:
    """What came of it on a fleet of `devices` of `selected`, with the same mix of classes."""

    devices: int
    selected: int
    runs: int
    notes: tuple[str, ...]
    outcomes: tuple[Outcome, ...]


@dataclass(frozen=True)
class Unrehearsed:
    """Why there is nothing to show, and what to do."""

    why: str
    is_busy: bool = False
    """Whether asking again in a moment may help."""


class _Scenario(msgspec.Struct, frozen=True):
    summary: Outcome


class _Answer(msgspec.Struct, frozen=True):
    """What is read of `muster rollout simulate --json`."""

    notes: list[str]
    scenarios: list[_Scenario]


class Rehearsals:
    """Asks, one at a time, and keeps what was answered.

    Args:
        command: What is run, before the arguments; None: `muster rollout simulate`, where it is installed.
    """

    def __init__(self, command: Sequence[str] | None = None, timeout_s: float = TIMEOUT_S) -> None:
        self._command = command
        self._timeout_s = timeout_s
        self._busy = threading.Lock()
        self._kept: OrderedDict[tuple[str, str], Rehearsal] = OrderedDict()

    def ask(self, policy: Policy, classes: Mapping[str, int], offline: float) -> Rehearsal | Unrehearsed:
        """Return what would come of `policy`; takes seconds.

        Args:
            classes: The devices that its selector names and that can run the release, by class.
            offline: The share of them that is, 0..1.
        """
        selected = sum(classes.values())
        if not selected:
            return Unrehearsed("There is no device to rehearse with.")
        shape = scaled(classes, DEVICES_MAX)
        policy_text = dump(msgspec.structs.replace(policy, selector=""))  # They are selected already.
        fleet_text = msgspec.json.encode({"classes": shape, "offline": min(round(offline, 3), 0.95)}).decode()
        kept = self._kept.get((policy_text, fleet_text))
        if kept is not None:
            return kept
        command = self._command or _installed()
        if command is None:
            return Unrehearsed("Rehearsals are part of muster-simulator: `pip install muster-simulator`.")
        if not self._busy.acquire(blocking=False):
            return Unrehearsed("Another rehearsal is under way.", is_busy=True)
        try:
            found = self._run(command, policy_text, fleet_text, sum(shape.values()), selected)
            if isinstance(found, Rehearsal):
                self._kept[policy_text, fleet_text] = found
                while len(self._kept) > KEPT_MAX:
                    self._kept.popitem(last=False)
            return found
        finally:
            self._busy.release()

    def _run(
        self, command: Sequence[str], policy: str, fleet: str, devices: int, selected: int
    ) -> Rehearsal | Unrehearsed:
        runs = max(RUNS_MIN, min(RUNS_MAX, RUNS_DEVICES // devices))
        with tempfile.TemporaryDirectory(prefix="muster-rehearsal-") as name:
            folder = Path(name)
            (folder / "policy.yaml").write_text(policy, encoding="utf-8")
            (folder / "fleet.yaml").write_text(fleet, encoding="utf-8")
            wishes = [word for each in SCENARIOS for word in ("--scenario", each)]
            order = [*command, "policy.yaml", "--fleet", "fleet.yaml", *wishes]
            order += ["--runs", str(runs), "--jobs", "1", "--json"]
            try:
                done = subprocess.run(
                    order,
                    cwd=folder,
                    stdin=subprocess.DEVNULL,
                    capture_output=True,
                    timeout=self._timeout_s,
                    check=False,
                )
            except subprocess.TimeoutExpired:
                return Unrehearsed(
                    f"It took longer than {self._timeout_s:g} s and was stopped;"
                    " `muster rollout simulate POLICY` takes its time."
                )
            except OSError as error:
                return Unrehearsed(f"It could not be started: {error.strerror or error}.")
        if done.returncode:
            said = done.stderr.decode("utf-8", "replace").strip().removeprefix("error: ")
            return Unrehearsed(said[:_SAID_MAX] or f"It ended with exit code {done.returncode}.")
        try:
            answer = msgspec.json.decode(done.stdout[: ANSWER_BYTES_MAX + 1], type=_Answer)
        except msgspec.DecodeError as error:
            return Unrehearsed(f"Its answer was not understood: {error}.")
        outcomes = tuple(each.summary for each in answer.scenarios)
        return Rehearsal(devices, selected, runs, tuple(answer.notes), outcomes)


def scaled(classes: Mapping[str, int], most: int) -> dict[str, int]:
    """Return a fleet of the same mix with about `most` devices at most, every class in it; small ones as they are."""
    total = sum(classes.values())
    if total <= most:
        return dict(classes)
    kept = sorted(classes.items(), key=lambda each: (-each[1], each[0]))[:most]
    return {name: max(1, round(count * most / total)) for name, count in sorted(kept)}


def _installed() -> list[str] | None:
    if not entry_points(group="muster.commands", name=COMMAND):
        return None
    return [sys.executable, "-m", "muster_controller.cli.main", *COMMAND.split(".")]
