"""Rules about what runs: devices that went away, headroom, rollouts that do not go on, the broker. Pure."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from muster_controller.core.alerts import rules
from muster_controller.core.alerts.finding import Finding, Severity

FLEET: Final = "fleet"
"""The subject of all classes together. No class is called so without being the fleet."""
GONE_MIN: Final = 3
"""Devices: two may be a coincidence in the smallest fleet."""
GONE_SHARE: Final = 0.10
"""Of the devices that were there an hour ago, ..."""
GONE_LINGERS: Final = 0.05
USUAL_FACTOR: Final = 2.0
"""... and twice as many as went at this time yesterday: shops close every evening."""
SETTLING_S: Final = 600.0
"""After the broker or the controller came back, devices need a while to come back too."""
CPU_MAX, CPU_LINGERS = 85.0, 75.0
UNDECIDED_S: Final = 3600.0
APPROVAL_S: Final = 24 * 3600.0


@dataclass(frozen=True)
class Presence:
    """Devices of one class, or of all (`FLEET`).

    Attributes:
        online: Now.
        gone: Offline now, and heard of in the last hour.
        gone_yesterday: `gone` at this time yesterday; None: not known.
    """

    name: str
    online: int
    gone: int
    gone_yesterday: int | None = None

    @property
    def share(self) -> float:
        there = self.online + self.gone
        return self.gone / there if there else 0.0


@dataclass(frozen=True)
class Peak:
    """A device class in its busiest hour of the last day. `cpu_percent`: mean over its devices, 0..100."""

    device_class: str
    cpu_percent: float
    at: float
    devices: int


class Hold(StrEnum):
    """Why a rollout does not go on."""

    UNDECIDED = "undecided"
    APPROVAL = "approval"
    STALLED = "stalled"


@dataclass(frozen=True)
class Stuck:
    """A rollout that rests. `since`: from when; `deadline_s`: of its policy, for one device."""

    rollout: str
    model: str
    version: str
    hold: Hold
    since: float
    reason: str
    deadline_s: float


def surges(found: Sequence[Presence]) -> Iterator[Finding]:
    """Yield the classes of which many went at once; the fleet instead, where it is most of it."""
    surging = {each.name: finding for each in found if (finding := _surge(each)) is not None}
    fleet = surging.get(FLEET)
    for finding in surging.values():
        if finding is fleet or fleet is None or fleet.lingers:
            yield finding


def _surge(found: Presence) -> Finding | None:
    usual = found.gone_yesterday or 0
    if found.gone < GONE_MIN or found.share < GONE_LINGERS or found.gone <= usual:
        return None
    there = found.online + found.gone
    yesterday = "" if found.gone_yesterday is None else f" (yesterday at this time {found.gone_yesterday})"
    whose = "devices" if found.name == FLEET else f"devices of class {found.name}"
    return Finding(
        rules.OFFLINE_SURGE,
        found.name,
        Severity.PAGE,
        f"{found.gone} of {there} {whose} went offline within an hour{yesterday}.",
        {"gone": found.gone, "there": there, "share": round(found.share, 4), "yesterday": found.gone_yesterday},
        lingers=found.share < GONE_SHARE or found.gone < USUAL_FACTOR * usual,
    )


def headroom(peaks: Iterable[Peak]) -> Iterator[Finding]:
    for each in peaks:
        if each.cpu_percent > CPU_LINGERS:
            yield Finding(
                rules.CAPACITY,
                each.device_class,
                Severity.TICKET,
                f"Devices of class {each.device_class} used {each.cpu_percent:.0f} % of their CPU in the busiest hour"
                f" of the last day; {CPU_MAX:.0f} % is the limit.",
                {
                    "device_class": each.device_class,
                    "cpu_percent": round(each.cpu_percent, 1),
                    "at": each.at,
                    "devices": each.devices,
                },
                lingers=each.cpu_percent <= CPU_MAX,
            )


def stuck(rollouts: Iterable[Stuck], now: float) -> Iterator[Finding]:
    for each in rollouts:
        waited_s = now - each.since
        match each.hold:
            case Hold.UNDECIDED:
                limit_s, said = UNDECIDED_S, "is paused, because the gate can say neither yes nor no"
            case Hold.APPROVAL:
                limit_s, said = APPROVAL_S, "waits for an approval"
            case Hold.STALLED:
                limit_s, said = each.deadline_s, "has not gone on"
        if waited_s > limit_s:
            hours = f"{waited_s / 3600:.0f} h" if waited_s >= 7200 else f"{waited_s / 60:.0f} min"
            yield Finding(
                rules.ROLLOUT_STUCK,
                each.rollout,
                Severity.TICKET,
                f"Rollout {each.rollout} of {each.model} {each.version} {said} for {hours}"
                + (f": {each.reason}" if each.reason else "."),
                {
                    "rollout": each.rollout,
                    "model": each.model,
                    "version": each.version,
                    "hold": each.hold.value,
                    "since": each.since,
                },
            )


def broker(*, is_connected: bool) -> Iterator[Finding]:
    if not is_connected:
        said = "The controller has no connection to the broker: no device can be told anything."
        yield Finding(rules.BROKER_AWAY, "broker", Severity.PAGE, said)
