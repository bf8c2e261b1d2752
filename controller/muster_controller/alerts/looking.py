"""Looking: what the rules are to judge, gathered from where it is, and none of it more often than it changes.

What cannot be read leaves its rules blind and not the others: it is said once when it goes and once when it is back.
"""

from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Final, Generic, TypeVar

import structlog

from muster_controller.core.alerts.burn import PACES
from muster_controller.core.alerts.content import Compared, Drifting
from muster_controller.core.alerts.expiring import Expiring
from muster_controller.core.alerts.judge import Facts, Watched
from muster_controller.core.alerts.mixing import MixerFacts
from muster_controller.core.alerts.running import FLEET, SETTLING_S, Hold, Peak, Presence, Stuck
from muster_controller.core.rollout.outlook import gate, is_gate_reached
from muster_controller.core.rollout.state import Pause, Rollout, RolloutState
from muster_controller.db.objective_store import ObjectiveStore
from muster_controller.db.snapshot import Committed
from muster_controller.groups import device_class
from muster_controller.ports import Device
from muster_shared.errors import MusterError

HOURLY_S: Final = 300.0
"""What comes by the hour is looked at every five minutes."""
SELDOM_S: Final = 900.0
"""What lasts for days."""
HOUR_S, DAY_S = 3600.0, 86_400.0
SAMPLE_S: Final = 600.0
NEAR_S: Final = 1800.0
"""A day ago, give or take."""
CLASSES_MAX: Final = 200
WINDOWS: Final = tuple(sorted({each for pace in PACES for each in (pace.long_s, pace.short_s)}))

T = TypeVar("T")
CONNECTING_S: Final = 20.0
"""A controller that has just begun to lead connects in this time."""

log = structlog.get_logger()


@dataclass(frozen=True)
class Sources:
    """Where facts come from. Each may raise MusterError."""

    committed: Callable[[], Committed]
    is_connected: Callable[[], bool]
    objectives: ObjectiveStore
    drift: Callable[[], Iterable[Drifting]]
    compared: Callable[[], Iterable[Compared]]
    peaks: Callable[[], Iterable[Peak]]
    mixers: Callable[[], Iterable[MixerFacts]]
    certificates: Callable[[], Iterable[Expiring]]
    keys: Callable[[], Iterable[Expiring]]


class Looking:
    """Belongs to one thread. Who begins to lead makes a new one: what an old one remembered is not true any more."""

    def __init__(self, sources: Sources, clock: Callable[[], float]) -> None:
        self._sources = sources
        self._clock = clock
        self._objectives: _Kept[tuple[Watched, ...]] = _Kept("objectives", 0.0)
        self._drift: _Kept[tuple[Drifting, ...]] = _Kept("drift", HOURLY_S)
        self._compared: _Kept[tuple[Compared, ...]] = _Kept("slices", HOURLY_S)
        self._peaks: _Kept[tuple[Peak, ...]] = _Kept("peaks", HOURLY_S)
        self._mixers: _Kept[tuple[MixerFacts, ...]] = _Kept("mixers", 0.0)
        self._certificates: _Kept[tuple[Expiring, ...]] = _Kept("certificates", SELDOM_S)
        self._keys: _Kept[tuple[Expiring, ...]] = _Kept("keys", SELDOM_S)
        self._attendance = Attendance()
        self._progress = Progress()
        self._connected_at: float | None = None
        self._connecting_until: float | None = clock() + CONNECTING_S
        """Until then it is no news that there is no broker yet; None: there was one."""

    def look(self) -> Facts:
        """Return what is known now. Raises nothing that is the world's."""
        now, sources = self._clock(), self._sources
        is_connected = sources.is_connected()
        self._connected_at = (now if self._connected_at is None else self._connected_at) if is_connected else None
        if is_connected:
            self._connecting_until = None
        is_connecting = self._connecting_until is not None and now < self._connecting_until
        is_settled = self._connected_at is not None and now - self._connected_at >= SETTLING_S
        fleet = sources.committed()
        presence = self._attendance.seen(fleet.devices.values(), now, is_settled=is_settled)
        return Facts(
            now=now,
            objectives=self._objectives.read(self._watched, now),
            drift=self._drift.read(lambda: tuple(sources.drift()), now),
            compared=self._compared.read(lambda: tuple(sources.compared()), now),
            presence=presence if is_settled else None,
            peaks=self._peaks.read(lambda: tuple(sources.peaks()), now),
            rollouts=tuple(self._progress.seen(fleet.running.values(), now)),
            is_connected=None if is_connecting else is_connected,
            certificates=self._certificates.read(lambda: tuple(sources.certificates()), now),
            keys=self._keys.read(lambda: tuple(sources.keys()), now),
            mixers=self._mixers.read(lambda: tuple(sources.mixers()), now),
        )

    def _watched(self) -> tuple[Watched, ...]:
        store = self._sources.objectives
        return tuple(
            Watched(kept.objective, {window: store.requests(kept.objective, window) for window in WINDOWS})
            for kept in store.objectives()
        )


class Attendance:
    """Who is there, and how many went at this time yesterday; of that it remembers a sample every SAMPLE_S."""

    def __init__(self) -> None:
        self._samples: deque[tuple[float, dict[str, int]]] = deque(maxlen=int((DAY_S + 2 * NEAR_S) / SAMPLE_S))

    def seen(self, devices: Iterable[Device], now: float, *, is_settled: bool) -> tuple[Presence, ...]:
        """Return the fleet, and each class (the first CLASSES_MAX)."""
        online: dict[str, int] = {}
        gone: dict[str, int] = {}
        for each in devices:
            if each.online:
                name = device_class(each)
                online[name] = online.get(name, 0) + 1
            elif now - each.seen_at < HOUR_S and each.twin is not None:
                name = device_class(each)
                gone[name] = gone.get(name, 0) + 1
        names = sorted(online.keys() | gone.keys())[:CLASSES_MAX]
        online[FLEET], gone[FLEET] = sum(online.values()), sum(gone.values())
        yesterday = self._yesterday(now)
        if is_settled and (not self._samples or now - self._samples[-1][0] >= SAMPLE_S):
            self._samples.append((now, gone))
        return tuple(
            Presence(
                name,
                online.get(name, 0),
                gone.get(name, 0),
                None if yesterday is None else yesterday.get(name, 0),
            )
            for name in (FLEET, *(each for each in names if each != FLEET))
        )

    def _yesterday(self, now: float) -> dict[str, int] | None:
        """Return the most of the samples of about a day ago; None: there is none."""
        near = [gone for at, gone in self._samples if abs(now - DAY_S - at) <= NEAR_S]
        if not near:
            return None
        return {name: max(each.get(name, 0) for each in near) for name in set().union(*near)}


class Progress:
    """Since when each rollout has not moved. The devices under way are counted, not looked at."""

    def __init__(self) -> None:
        self._moved: dict[str, tuple[tuple[object, ...], float]] = {}

    def seen(self, running: Iterable[Rollout], now: float) -> list[Stuck]:
        """Return every rollout that rests, however short."""
        moved: dict[str, tuple[tuple[object, ...], float]] = {}
        found: list[Stuck] = []
        for each in running:
            sign = (
                each.state,
                each.wave,
                each.released,
                each.settled,
                each.in_flight,
                each.recalled,
                len(each.verdicts),
            )
            before = self._moved.get(each.id)
            moved[each.id] = before if before is not None and before[0] == sign else (sign, now)
            stuck = _stuck(each, moved[each.id][1], now)
            if stuck is not None:
                found.append(stuck)
        self._moved = moved
        return found


def _stuck(rollout: Rollout, moved_at: float, now: float) -> Stuck | None:
    policy = rollout.policy
    deadline_s = policy.deadline_s + policy.window_max_s + policy.soak_s + (policy.download_s or 0.0)
    deadline_s += policy.retries * policy.retry_wait_s + policy.defer_s_max

    def held(hold: Hold, since: float, reason: str) -> Stuck:
        release = rollout.release
        return Stuck(rollout.id, rollout.model, release.version, hold, since, reason, deadline_s)

    if rollout.state is RolloutState.PAUSED and rollout.pause is Pause.UNDECIDED:
        since = rollout.verdicts[-1].at if rollout.verdicts else rollout.wave_began_at or rollout.created_at
        return held(Hold.UNDECIDED, since, rollout.reason)
    if is_gate_reached(rollout, now):
        return held(Hold.APPROVAL, rollout.wave_passed_at or rollout.created_at, gate(rollout) or "")
    waits_for_people = bool(policy.maintenance) or policy.consent
    is_under_way = rollout.state in (RolloutState.RUNNING, RolloutState.ABORTING) and rollout.in_flight > 0
    if is_under_way and not waits_for_people:
        return held(Hold.STALLED, moved_at, rollout.reason)
    return None


class _Kept(Generic[T]):
    """One kind of facts, read at most every so many seconds; None while it cannot be read."""

    def __init__(self, name: str, every_s: float) -> None:
        self._name = name
        self._every_s = every_s
        self._at = float("-inf")
        self._facts: T | None = None
        self._is_lost = False

    def read(self, read: Callable[[], T], now: float) -> T | None:
        if self._facts is not None and self._at <= now < self._at + self._every_s:
            return self._facts
        try:
            self._facts, self._at = read(), now
        except MusterError as error:
            self._facts = None
            if not self._is_lost:
                log.warning("alert_facts_lost", facts=self._name, error=str(error))
            self._is_lost = True
            return None
        if self._is_lost:
            log.info("alert_facts_back", facts=self._name)
            self._is_lost = False
        return self._facts
