"""What every step of the story needs: waiting with a deadline, checking, rolling out, and the faults.

A check that does not hold ends the story with a sentence and the log to read.
"""

import http.client
import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from muster_controller.api.schemas import MemberView, RolloutDetail
from muster_controller.core.policy import Policy
from muster_shared.errors import MusterError
from muster_shared.ids import DeviceId, ModelName
from muster_simulator.demo import plan
from muster_simulator.demo.desk import Desk
from muster_simulator.demo.display import Display
from muster_simulator.demo.processes import Crew
from muster_simulator.demo.stage import HOST, Stage
from muster_simulator.demo.summary import RolloutReport, VerdictSummary
from muster_simulator.demo.traffic import Traffic

POLL_S = 0.1
STATUS_S = 10.0  # An agent itself answers within 5 s, if only that it is busy.
WATCH_S = 0.02  # An update of 12 kB passes through its phases in half a second.
LOOK_AT_ROLLOUT_S = 0.25
INTO_THE_WAVE_S = 1.0  # Devices are fetching and being measured then.
ENDED = ("aborted", "finished", "paused")
BROKERS = ("mosquitto", "nats-server")
CONTROLLER = "controller"


class CheckFailed(MusterError):
    """Something that the demo claims did not hold. `log` says more."""

    def __init__(self, what: str, log: Path) -> None:
        super().__init__(f"{what}; read {log}")
        self.what = what
        self.log = log


@dataclass(frozen=True)
class Disturbed:
    """When the faults came, in seconds of the monotonic clock."""

    killed_at: float
    phase: str
    """Of the update that was interrupted."""
    restarted_at: float


class Hands:
    """Does and checks. For one thread."""

    def __init__(self, stage: Stage, crew: Crew, display: Display, desk: Desk) -> None:
        self.rollouts: list[RolloutReport] = []
        """Those that have ended, in order."""
        self._stage = stage
        self._crew = crew
        self._display = display
        self._desk = desk
        self._verdicts_said: dict[str, int] = {}
        self._back: set[tuple[DeviceId, ModelName, str]] = set()

    # -- waiting and checking ----------------------------------------------------------------------------------------

    def until(self, what: str, holds: Callable[[], bool], timeout_s: float, log: str, every_s: float = POLL_S) -> None:
        """Return once `holds`. Raises CheckFailed after `timeout_s`, ProcessFailed when a process has ended badly."""
        deadline = time.monotonic() + timeout_s
        while not holds():
            self._crew.require()
            self.check(time.monotonic() < deadline, f"not within {timeout_s:g} s: {what}", log)
            self._display.tell()
            time.sleep(every_s)

    def check(self, holds: bool, otherwise: str, log: str = CONTROLLER) -> None:
        """Raise CheckFailed with what is `otherwise`."""
        if not holds:
            raise CheckFailed(otherwise, self._stage.log(log))

    def check_everywhere(self, versions: Mapping[ModelName, str], log: str = CONTROLLER) -> None:
        """Check that every device serves these versions and nothing else, as soon as the twins say so.

        A device that found a release worse than it claims went back by itself, and stays there: nobody overrules it.
        """

        def everywhere() -> bool:
            return all(
                device.active.keys() == versions.keys()
                and all(
                    device.active[model] == version or self.went_back(DeviceId(device.id), model, version)
                    for model, version in versions.items()
                )
                for device in self._desk.devices()
            )

        said = ", ".join(f"{model} {version}" for model, version in versions.items())
        self.until(f"every device serves {said}", everywhere, plan.CONVERGE_S, log)
        but = ", ".join(sorted({device for device, model, version in self._back if versions.get(model) == version}))
        self._display.say(f"every device serves {said}" + (f", but {but}, which went back by itself" if but else ""))

    def went_back(self, device: DeviceId, model: ModelName, version: str) -> bool:
        """Return whether `device` called that release bad in its own window, and serves what it had before."""
        key = (device, model, version)
        if key not in self._back and any(
            event.kind == "step"
            and event.body["step"] == "rolled_back"
            and (event.body["release"]["model"], event.body["release"]["version"]) == (model, version)
            for event in self._desk.events(device, 0.0)
        ):
            self._back.add(key)
        return key in self._back

    def status(self, device: DeviceId) -> dict[str, Any] | None:
        """Return what a real agent's own endpoint tells of it; None while it is too busy to say."""
        connection = http.client.HTTPConnection(HOST, self._stage.agent_ports[device], timeout=STATUS_S)
        try:
            connection.request("GET", "/v1/status")
            response = connection.getresponse()
            raw = response.read()
            said: dict[str, Any] | None = json.loads(raw) if response.status == http.client.OK else None
        except TimeoutError:
            return None
        finally:
            connection.close()
        return said

    # -- rollouts ----------------------------------------------------------------------------------------------------

    def roll_out(self, versions: Mapping[ModelName, str], policy: Policy) -> Sequence[RolloutDetail]:
        """Roll out one version of each model at once; return how they ended."""
        started = [self._desk.start_rollout(model, version, policy).id for model, version in versions.items()]
        return self.await_rollouts(started)

    def await_rollouts(self, ids: Sequence[str]) -> Sequence[RolloutDetail]:
        """Return the rollouts when all have ended, and keep a report of each."""

        def ended() -> bool:
            details = [self._look(each) for each in ids]  # All of them, each time: verdicts are told as they come.
            return all(detail.state in ENDED for detail in details)

        self.until("the rollouts end", ended, plan.ROLLOUT_S, CONTROLLER, LOOK_AT_ROLLOUT_S)
        found = [self._look(each) for each in ids]
        self.rollouts += [self._report(detail) for detail in found]
        return found

    def check_finished(self, rollout: RolloutDetail) -> None:
        name = f"{rollout.model} {rollout.version}"
        self.check(rollout.state == "finished", f"{name} is {rollout.state}: {rollout.reason}")
        for member in self._desk.members(rollout.id):
            if member.arm == "treated" and member.outcome == "bad":
                self._display.say(f"{member.device} did not do well with {name}: {member.reason}", "yellow")

    def report_of(self, rollout: RolloutDetail) -> RolloutReport:
        return next(each for each in self.rollouts if (each.model, each.version) == (rollout.model, rollout.version))

    def _look(self, rollout: str) -> RolloutDetail:
        """Return the rollout as it is now, and tell the verdicts that are new."""
        detail = self._desk.rollout(rollout)
        for verdict in detail.verdicts[self._verdicts_said.get(rollout, 0) :]:
            style = {"promote": "green", "abort": "red"}.get(verdict.kind, "yellow")
            text = f"{detail.model} {detail.version}, wave {verdict.wave + 1}: {verdict.kind}; {verdict.reason}"
            self._display.say(text, style)
        self._verdicts_said[rollout] = len(detail.verdicts)
        return detail

    def _report(self, detail: RolloutDetail) -> RolloutReport:
        members = self._desk.members(detail.id)
        exposed = [member for member in members if member.arm == "treated"]
        return RolloutReport(
            model=detail.model,
            version=detail.version,
            previous=detail.previous,
            state=detail.state,
            reason=detail.reason,
            seconds=(detail.ended_at or time.time()) - detail.created_at,
            devices=detail.counts.devices,
            exposed=len(exposed),
            well=detail.counts.good,
            badly=detail.counts.bad,
            bytes_fetched=detail.counts.bytes_fetched,
            bytes_fetched_after_abort=self._fetched_to_return(detail, exposed) if detail.state == "aborted" else None,
            verdicts=tuple(
                VerdictSummary(wave=verdict.wave + 1, kind=verdict.kind, e=verdict.evidence.e, reason=verdict.reason)
                for verdict in detail.verdicts
            ),
        )

    def _fetched_to_return(self, detail: RolloutDetail, exposed: Sequence[MemberView]) -> int:
        """Return the bytes that the exposed devices fetched of anything since the rollout was aborted."""
        aborted_at = next(verdict.at for verdict in detail.verdicts if verdict.kind == "abort")
        steps = [
            event.body
            for member in exposed
            for event in self._desk.events(member.device, aborted_at)
            if event.kind == "step" and event.body["release"]["model"] == detail.model
        ]
        # Steps of the bad release itself tell of bytes from before: a device that was still measuring it.
        return sum(step["bytes_fetched"] for step in steps if step["release"]["version"] != detail.version)

    # -- faults ------------------------------------------------------------------------------------------------------

    def disturb(self, rollout: str, victim: DeviceId, model: ModelName, version: str, traffic: Traffic) -> Disturbed:
        """Kill `victim` in the middle of its update to `version`, and restart the broker in the second wave."""
        killed_at = restarted_at = 0.0
        phase = ""
        looked_at = 0.0
        broker = self.broker()

        def done() -> bool:
            nonlocal killed_at, restarted_at, phase, looked_at
            if not killed_at:
                phase = self._phase(victim, model, version)
                if phase:
                    traffic.expect_outage(victim)
                    self._crew.kill(victim)
                    traffic.expect_outage(victim)  # Again: an answer just before the end would have called it off.
                    killed_at = time.monotonic()
                    self._display.say(f"{victim} is killed (SIGKILL) in the phase {phase} of {model} {version}")
            if time.monotonic() < looked_at + LOOK_AT_ROLLOUT_S:
                return bool(killed_at and restarted_at)
            looked_at = time.monotonic()
            detail = self._look(rollout)
            into_s = time.time() - (detail.wave_began_at or time.time())
            if not restarted_at and detail.wave >= 1 and into_s >= INTO_THE_WAVE_S:
                broker.terminate()
                restarted_at = time.monotonic()
                self._display.say(
                    f"the broker ({broker.name()}, pid {broker.pid}) is stopped in wave {detail.wave + 1}"
                )
            return bool(killed_at and restarted_at) or detail.state in ENDED

        self.until("the faults came", done, plan.ROLLOUT_S, CONTROLLER, WATCH_S)
        self.check(bool(killed_at), f"{victim} was never seen in its update to {model} {version}", victim)
        self.check(bool(restarted_at), "the rollout ended before the broker could be restarted in its second wave")
        return Disturbed(killed_at, phase, restarted_at)

    def await_version(self, device: DeviceId, model: ModelName, version: str) -> float:
        """Return the moment (monotonic) at which the controller knows that `device` serves `version`, or did."""

        def serves() -> bool:
            found = self._desk.device(device)
            return found.online and (found.active.get(model) == version or self.went_back(device, model, version))

        self.until(f"{device} serves {model} {version}", serves, plan.CONVERGE_S, device)
        return time.monotonic()

    def broker(self) -> psutil.Process:
        """Return the process of the embedded broker."""
        controller = psutil.Process(self._crew[CONTROLLER].pid)
        found = [child for child in controller.children(recursive=True) if child.name() in BROKERS]
        self.check(len(found) == 1, f"the controller has {len(found)} brokers")
        return found[0]

    def _phase(self, device: DeviceId, model: ModelName, version: str) -> str:
        """Return the phase of the device's update to `version`, as its own endpoint tells; empty when there is none."""
        said = self.status(device)
        for each in [] if said is None else said["device"]["models"]:
            if each["model"] == model and each["phase"] != "idle" and (each["desired"] or {}).get("version") == version:
                return str(each["phase"])
        return ""
