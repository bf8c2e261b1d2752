"""A fleet of statistical devices: what each does with an assignment, and when the controller hears of it.

    told ─ fetch ─ (windows, consent) ─ (trial) ─ switch ─ window ─▶ report, as soon as it is online
             └ too long ──┴ too late ─────┴ disagrees ─▶ failed       (or silence)

A held-back control waits for the same windows and measures at once. Whether a maintenance window is open, and how a
device defers, is asked of the shipped agent's core. Nothing is decided about the rollout here.
"""

from bisect import bisect_right
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import accumulate
from math import inf, log, log1p
from random import Random

from muster_agent.core import activation
from muster_agent.core.events import Report, WakeAt
from muster_agent.core.state import Phase, Update
from muster_agent.core.trial import LATENCIES_MIN
from muster_controller.core.rollout.events import DeviceFacts, Event, OutcomeArrived, StepArrived
from muster_shared.assignment import Trial, Watch
from muster_shared.ids import DeviceId
from muster_shared.messages import Refusal, ReleaseRef, Step, StepReached
from muster_simulator.rehearsal.fleet_shape import Fleet, Kind, share, week_minute, zone
from muster_simulator.rehearsal.links import Link
from muster_simulator.rehearsal.scenarios import SHOCK_RATE, SHOCK_SLOWER, Scenario

TRAFFIC_SPREAD = log(2.0)
RESTLESS, RESTLESS_FACTOR = 0.05, 4.0
SAMPLE_SPREAD = 0.5  # Of log p95, times the root of the requests it is taken from: about what a spread of 30 % gives.
RETRY_FETCH_S = 5.0  # What was fetched stays on the device.
HOUR_S = 3600.0


@dataclass(frozen=True)
class Arrival:
    """What the controller hears, and when."""

    at: float
    event: Event


@dataclass(frozen=True)
class Look:
    """A device that put its switch off looks again."""

    at: float
    device: DeviceId
    watch: Watch
    update: Update


Later = Arrival | Look


class Devices(Mapping[DeviceId, DeviceFacts]):
    """The devices of one run; as a mapping, what the controller knows of them at `now`."""

    def __init__(
        self,
        fleet: Fleet,
        ids: Mapping[DeviceId, Kind],
        scenario: Scenario,
        old: ReleaseRef,
        new: ReleaseRef,
        start: float,
        random: Random,
    ) -> None:
        self.now = start
        self.is_shocked = False
        self.broken: dict[DeviceId, bool] = {}
        """Treated devices, and whether the release breaks them."""
        self.switched: dict[DeviceId, float] = {}
        """When the release began to serve."""
        self._kinds = ids
        self._scenario = scenario
        self._old, self._new = old, new
        self._start = start
        self._random = random
        self._shape = fleet.shape
        self._idle = share(fleet.shape.idle, "idle")
        self._busy = share(fleet.shape.busy, "busy")
        self._zones = list(fleet.shape.timezones)
        self._zone_ends = list(accumulate(share(fleet.shape.timezones[name], name) for name in self._zones))
        self._traffic: dict[DeviceId, float] = {}
        self._zone: dict[DeviceId, str | None] = {}
        self._noise: dict[DeviceId, float] = {}
        self._weather: dict[tuple[str, int], float] = {}
        self._links: dict[DeviceId, Link] = {}
        self._here = DeviceFacts(True, old), DeviceFacts(True, new)
        self._away = DeviceFacts(False, old), DeviceFacts(False, new)
        back, chance = fleet.shape.back_per_hour / HOUR_S, random.random
        for device, kind in ids.items() if back or fleet.is_part_offline else ():
            if kind.offline or back:
                # In equilibrium as many leave as come back. Those of a list that are all here leave as the fleet does.
                usual = kind.offline if 0 < kind.offline < 1 else share(fleet.shape.offline, "offline")
                gone = back * usual / (1 - usual) if usual < 1 else 0.0
                self._links[device] = Link(chance() >= kind.offline, start, back, gone, random)

    # -- what the controller knows -----------------------------------------------------------------------------------

    def __getitem__(self, device: DeviceId) -> DeviceFacts:
        link = self._links.get(device)
        facts = self._here if link is None or link.is_up(self.now) else self._away
        return facts[device in self.switched and self.switched[device] <= self.now]

    def __iter__(self) -> Iterator[DeviceId]:
        return iter(self._kinds)

    def __len__(self) -> int:
        return len(self._kinds)

    def next_return(self) -> tuple[float, DeviceId] | None:
        """Return when the first device that is offline now comes back; None: nobody does."""
        found = [(link.up_from(self.now), device) for device, link in self._links.items() if not link.is_up(self.now)]
        at, device = min(found, default=(inf, DeviceId("")))
        return None if at == inf else (at, device)

    # -- what they do ------------------------------------------------------------------------------------------------

    def told(self, device: DeviceId, release: ReleaseRef, watch: Watch) -> list[Later]:
        """Return what follows when `device` is told now to run `release`, the new one or (held back) the old one."""
        is_control = release.bundle_sha256 == self._old.bundle_sha256
        update = Update(release, watch, Phase.READY, self.now, self.now + watch.deadline_s, sham=is_control)
        if is_control:
            return self._look(device, watch, update, self.now)
        scenario, harm = self._scenario, self._scenario.harm
        if device not in self.broken:
            hit = scenario.hits(self._kinds[device].device_class)
            self.broken[device] = hit and self._random.random() < scenario.excess
        fetch_s = self._fetch_s(device) if watch.attempt == 1 else RETRY_FETCH_S
        ready_at = self._after(device, self.now, fetch_s)
        limit_s = watch.deadline_s if watch.download_s is None else min(watch.download_s, watch.deadline_s)
        if ready_at > self.now + limit_s:
            return self._failed(device, watch, Refusal.TIMED_OUT, self.now + limit_s)
        if self.broken[device] and harm.fails == "self_test":
            return self._failed(device, watch, Refusal.SELF_TEST_FAILED, ready_at)
        return self._look(device, watch, update, ready_at)

    def looks(self, look: Look) -> list[Later]:
        """Return what follows when a device that put its switch off looks again now."""
        late = activation.too_late(look.update, self.now)
        if late is not None:
            return self._no_consent(look.device, look.watch, look.update, self.now)
        return self._look(look.device, look.watch, look.update, self.now)

    def _look(self, device: DeviceId, watch: Watch, update: Update, at: float) -> list[Later]:
        """Ask windows and the device's own rules; go on, or put it off."""
        asked = watch.activation
        wait_s, reason = 0.0, ""
        if asked.windows:
            if at > self.now:  # Only now is known what the clock shows then, but the random numbers stay in order.
                return [Look(at, device, watch, update)]
            minutes = activation.opens_in(asked.windows, *week_minute(at, zone(self._zone_of(device))))
            if minutes != 0:
                wait_s = activation.LOOK_S_MAX if minutes is None else minutes * 60.0
                reason = "outside its maintenance windows"
        if not reason and asked.consent and not update.sham and self._random.random() < self._busy:
            wait_s, reason = self._shape.busy_s, "busy"
        if not reason:
            return self._go_on(device, watch, activation.over(update, at), at)
        update, effects = activation.defer(update, reason, wait_s, at)
        if activation.too_late(update, at) is not None:
            return self._no_consent(device, watch, update, at)
        later: list[Later] = []
        for effect in effects:
            match effect:
                case Report(StepReached(until=until, detail=detail)):
                    found = StepArrived(
                        device,
                        update.release.bundle_sha256,
                        Step.DEFERRED,
                        0,
                        at - update.began_at,
                        wave=watch.wave,
                        detail=detail,
                        wait_s=None if until is None else until - at,
                    )
                    later.append(Arrival(self._heard(device, at), found))
                case WakeAt(wake_at):
                    later.append(Look(wake_at, device, watch, update))
                case _:
                    pass
        return later

    def _go_on(self, device: DeviceId, watch: Watch, update: Update, at: float) -> list[Later]:
        scenario, kind = self._scenario, self._kinds[device]
        disagreed: bool | None = None
        if not update.sham:
            trial = watch.activation.trial
            if trial is not None:
                seconds, disagreed = self._tried(device, trial)
                at += seconds
                if disagreed or (disagreed is None and trial.required) or self._is_slow(device, trial, disagreed):
                    return self._failed(device, watch, Refusal.TRIAL_FAILED, at, disagreed)
            self.switched[device] = at
            if scenario.hits(kind.device_class) and self._random.random() < scenario.harm.silent:
                self.broken[device] = True
                return []
        rate = scenario.base_rate if update.sham else scenario.native_rate
        if self.is_shocked:
            rate = min(1.0, rate * SHOCK_RATE)
        bad = self._random.random() < rate or (not update.sham and self.broken[device])
        per_s = self._traffic_of(device) / HOUR_S
        seconds = watch.window_s if bad else _window_s(watch, per_s)
        ends_at = at + seconds
        found = OutcomeArrived(
            device,
            watch.wave,
            not bad,
            "the rehearsal let it fail" if bad else "",
            latency=self._latency(device, kind, ends_at, per_s * seconds, is_control=update.sham),
            disagreed=disagreed,
        )
        arrivals: list[Later] = [Arrival(self._heard(device, ends_at), found)]
        if update.deferred_s and not update.sham:  # Else the step changes nothing that the machine goes by.
            step = StepArrived(device, self._new.bundle_sha256, Step.SWITCHED, 0, at - update.began_at, wave=watch.wave)
            arrivals.append(Arrival(self._heard(device, at), step))
        return arrivals

    def _tried(self, device: DeviceId, trial: Trial) -> tuple[float, bool | None]:
        """Return how long a trial takes, and whether it disagrees; None: it has too few inputs to say."""
        per_s = self._traffic_of(device) / HOUR_S * trial.share
        seconds = trial.requests_min / per_s if per_s else inf
        if seconds > trial.seconds_max:
            return trial.seconds_max, None
        hit = self._scenario.hits(self._kinds[device].device_class)
        return seconds, hit and self._random.random() < self._scenario.harm.disagreeing

    def _is_slow(self, device: DeviceId, trial: Trial, disagreed: bool | None) -> bool:
        """Return whether the trial finds the candidate too slow, in a trial that had its inputs."""
        if disagreed is None or trial.requests_min < LATENCIES_MIN:
            return False
        slower = self._scenario.harm.slower if self._scenario.hits(self._kinds[device].device_class) else 0.0
        noise = self._random.gauss(0.0, SAMPLE_SPREAD * (2 / trial.requests_min) ** 0.5)
        return log1p(slower) + noise > log(trial.latency_ratio_max)

    def _failed(
        self, device: DeviceId, watch: Watch, refusal: Refusal, at: float, disagreed: bool | None = None
    ) -> list[Later]:
        heard_at = self._heard(device, at)
        step = StepArrived(
            device, self._new.bundle_sha256, Step.FAILED, 0, at - self.now, wave=watch.wave, refusal=refusal
        )
        outcome = OutcomeArrived(device, watch.wave, False, refusal.value, disagreed=disagreed)
        return [Arrival(heard_at, step), Arrival(heard_at, outcome)]

    def _no_consent(self, device: DeviceId, watch: Watch, update: Update, at: float) -> list[Later]:
        if update.sham:
            outcome = OutcomeArrived(device, watch.wave, False, Refusal.NO_CONSENT.value)
            return [Arrival(self._heard(device, at), outcome)]
        return self._failed(device, watch, Refusal.NO_CONSENT, at)

    # -- what they are like ------------------------------------------------------------------------------------------

    def _latency(self, device: DeviceId, kind: Kind, at: float, requests: float, *, is_control: bool) -> float | None:
        """Return log(p95 after / p95 before) of a window that ends at `at`; None without requests."""
        if requests < 1:
            return None
        own = self._noise.get(device)
        if own is None:
            restless = self._random.random() < RESTLESS
            own = self._noise[device] = self._shape.latency_noise * (RESTLESS_FACTOR if restless else 1.0)
        found = self._random.gauss(0.0, (own**2 + SAMPLE_SPREAD**2 / requests) ** 0.5)
        if self._shape.weather:
            found += self._weather_at(kind.device_class, at)
        if self.is_shocked:
            found += log1p(SHOCK_SLOWER)
        harm = self._scenario.harm
        if harm.slower and not is_control and self._scenario.hits(kind.device_class):
            found += log1p(harm.slower)
        return found

    def _weather_at(self, device_class: str, at: float) -> float:
        """Return what is common to a class at an hour; from one hour to the next it changes evenly."""
        hours = (at - self._start) / HOUR_S
        hour = int(hours)
        ends = []
        for key in ((device_class, hour), (device_class, hour + 1)):
            if key not in self._weather:
                self._weather[key] = self._random.gauss(0.0, self._shape.weather)
            ends.append(self._weather[key])
        return ends[0] + (hours - hour) * (ends[1] - ends[0])

    def _fetch_s(self, device: DeviceId) -> float:
        return self._kinds[device].fetch_s * self._random.lognormvariate(0.0, self._shape.fetch_spread)

    def _traffic_of(self, device: DeviceId) -> float:
        """Return requests an hour."""
        if device not in self._traffic:
            usual = self._kinds[device].requests_per_hour * self._random.lognormvariate(0.0, TRAFFIC_SPREAD)
            self._traffic[device] = 0.0 if self._idle and self._random.random() < self._idle else usual
        return self._traffic[device]

    def _zone_of(self, device: DeviceId) -> str | None:
        own = self._kinds[device].zone
        if own is not None or not self._zones:
            return own
        if device not in self._zone:
            place = bisect_right(self._zone_ends, self._random.random() * self._zone_ends[-1])
            self._zone[device] = self._zones[min(place, len(self._zones) - 1)]
        return self._zone[device]

    def _heard(self, device: DeviceId, at: float) -> float:
        """Return when the controller hears what a device says at `at`: its outbox waits until it is online."""
        link = self._links.get(device)
        sent_at = at if link is None else link.up_from(at)
        delay_s = self._shape.after_report_s
        return sent_at + (self._random.expovariate(1 / delay_s) if delay_s else 0.0)

    def _after(self, device: DeviceId, at: float, seconds: float) -> float:
        """Return when `device` has been online for `seconds` from `at` on."""
        link = self._links.get(device)
        return at + seconds if link is None else link.through(at, seconds)


def _window_s(watch: Watch, per_s: float) -> float:
    """Return how long a window is that goes well: longer, in the agent's steps, where requests are too few."""
    if per_s * watch.window_s >= watch.requests_min:
        return watch.window_s
    step_s = max(watch.window_s / 2, 0.5)
    needed_s = watch.requests_min / per_s if per_s else inf
    if needed_s >= watch.window_max_s:
        return watch.window_max_s
    steps = -((watch.window_s - needed_s) // step_s)
    return min(watch.window_s + steps * step_s, watch.window_max_s)
