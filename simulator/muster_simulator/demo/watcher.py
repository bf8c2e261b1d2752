"""What goes on now, in a few lines: the fleet, the rollouts under way, and what applications see.

A thread of its own asks the controller twice a second, so that showing it never waits.
"""

import threading
from collections.abc import Sequence
from pathlib import Path

from muster_controller.api.schemas import RolloutSummary, Status
from muster_simulator.demo.desk import Desk, DeskRefused
from muster_simulator.demo.traffic import Report, Traffic

EVERY_S = 0.5


class Watcher:
    """`lines` at any time, from any thread."""

    def __init__(self, url: str, data: Path) -> None:
        self._desk = Desk(url, data, Path())
        self._traffic: Traffic | None = None
        self._status: Status | None = None
        self._reports: list[Report] = []
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="watcher", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._stopping.set()
        if self._thread.is_alive():
            self._thread.join(2.0)
        self._desk.close()

    def watch(self, traffic: Traffic) -> None:
        self._traffic = traffic

    def lines(self) -> Sequence[str]:
        status, reports = self._status, self._reports
        lines = [] if status is None else [_fleet(status), *map(_rollout, status.rollouts)]
        return [*lines, *_traffic(reports)]

    def _run(self) -> None:
        while not self._stopping.wait(EVERY_S):
            try:
                self._status = self._desk.status()
            except DeskRefused:
                self._status = None  # It is not up yet, or on its way down.
            if self._traffic is not None:
                self._reports = [*self._reports[-9:], self._traffic.report()]


def _fleet(status: Status) -> str:
    versions: dict[str, list[str]] = {}
    for each in status.versions:
        versions.setdefault(each.model, []).append(f"{each.version} on {each.devices}")
    serving = "; ".join(f"{model} {', '.join(shares)}" for model, shares in versions.items())
    return f"{status.online} of {status.devices} devices online; {serving or 'nothing is served yet'}"


def _rollout(rollout: RolloutSummary) -> str:
    counts = rollout.counts
    wave = "waits for devices" if rollout.wave < 0 else f"wave {rollout.wave + 1} of {len(rollout.waves)}"
    outcomes = f"{counts.good} well, {counts.bad} badly, {counts.pending} pending, {counts.waiting} waiting"
    return f"{rollout.model} {rollout.version} {rollout.state}: {wave}; {outcomes}; E = {rollout.e:.2f}"


def _traffic(reports: Sequence[Report]) -> list[str]:
    if not reports:
        return []
    first, last = reports[0], reports[-1]
    rate = (last.requests - first.requests) / (last.at - first.at) if last.at > first.at else 0.0
    lines = [f"{last.requests:,} requests of applications, {rate:.0f}/s, {last.failed} failed"]
    for model, versions in last.by_version().items():
        seen = [
            f"{version} {each.accuracy:.1%} of {each.labelled:,}"
            for version, each in versions.items()
            if each.accuracy is not None
        ]
        lines.append(f"{model} right: {', '.join(seen)}")
    return lines
