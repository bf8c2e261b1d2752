"""The facts of a review: read from the tables, the committed fleet, the registry and the fleet CA. Decides nothing."""

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final

from muster_controller.core.metrics.series import HOST, Series
from muster_controller.core.review.facts import Coming, Facts
from muster_controller.core.review.week import WEEK_S, Week
from muster_controller.core.rollout.state import Outcome, Rollout
from muster_controller.db.snapshot import Committed
from muster_controller.export.naming import class_names
from muster_controller.export.reading import MetricsReading
from muster_controller.identity.desk import IdentityDesk
from muster_controller.releases import Releases
from muster_shared.metrics import DAY_S, HOUR_S, Kind

TRUST_S: Final = 45 * DAY_S
"""Holders of keys need time to meet."""
CERTIFICATES_S: Final = 10 * DAY_S
"""Agents renew long before that."""
CA_S: Final = 180 * DAY_S
NAMED_MAX: Final = 3
RENEWED: Final = ("snapshot", "timestamp")
"""By the controller itself, every day."""


@dataclass(frozen=True)
class Sources:
    """Everything that a review is made from."""

    fleet: str
    reading: MetricsReading
    committed: Callable[[], Committed]
    releases: Releases
    identity: IdentityDesk

    def facts(self, week: Week, now: float) -> Facts:
        """Return the facts of `week` as of `now`. Raises LedgerUnavailable."""
        hours = self._hours(week)
        before = self._hours(week.before)
        kinds = (Kind.FEEDBACK, Kind.INPUTS, Kind.LATENCY)
        fleet = self.committed()
        named = {(each.group.model, each.group.version) for each in (*hours, *before) if each.group.model != HOST}
        return Facts(
            fleet=self.fleet,
            week=week,
            hours=hours,
            hours_before=before,
            days=list(self.reading.sums(DAY_S, week.begin, week.end, kinds)),
            days_before=list(self.reading.sums(DAY_S, week.begin - WEEK_S, week.begin, kinds)),
            inputs=list(self.reading.sums(HOUR_S, week.begin, week.end, (Kind.INPUTS,))),
            labels={each: class_names(self.releases, *each) for each in named},
            coming=[*self._running_out(now), *_under_way(fleet), *_behind(fleet)],
            devices=len(fleet.devices),
        )

    def _hours(self, week: Week) -> list[Series]:
        return list(self.reading.series(HOUR_S, week.begin, week.end))

    def _running_out(self, now: float) -> Iterator[Coming]:
        repository = self.releases.repository
        for each in repository.expiries() if repository.is_ready else ():
            at = each.expires.timestamp()
            if each.role not in RENEWED and at - now < TRUST_S:
                yield Coming(kind="trust", name=each.role, text="metadata runs out; its holders have to sign", at=at)
        for info in self.identity.enrolment.ca.describe():
            if info.role in ("root", "intermediate") and info.expires_at - now < CA_S:
                yield Coming(kind="ca", name=f"fleet CA, {info.role}", text="runs out", at=info.expires_at)
        late = [(device, at) for device, at in self.reading.certificates() if at - now < CERTIFICATES_S]
        if late:
            names = ", ".join(device for device, _ in late[:NAMED_MAX]) + (" ..." if len(late) > NAMED_MAX else "")
            text = f"of devices run out and were not renewed: {names}"
            yield Coming(kind="certificates", name=f"{len(late)} certificates", text=text, at=late[0][1])


def _under_way(fleet: Committed) -> Iterator[Coming]:
    for each in fleet.running.values():
        yield Coming(kind="rollout", name=each.id, text=_said(each), at=each.created_at)


def _said(rollout: Rollout) -> str:
    outcomes = Counter(each.outcome for each in rollout.members.values())
    done = outcomes[Outcome.GOOD] + outcomes[Outcome.BAD]
    waves = f"wave {rollout.wave + 1} of {max(len(rollout.waves), rollout.wave + 1)}"
    state = rollout.state.value if rollout.pause is None else f"{rollout.state.value} ({rollout.pause.value})"
    return f"{rollout.model} {rollout.release.version}, {state}, {waves}, {done} of {len(rollout.members)} devices"


def _behind(fleet: Committed) -> Iterator[Coming]:
    """Tell how many devices serve another release than they should, unless a rollout is changing that."""
    changing = {each.model for each in fleet.running.values()}
    counts: Counter[tuple[str, str, str]] = Counter()
    for device in fleet.devices.values():
        desired = fleet.desired.get(device.id)
        twins = {} if device.twin is None else {model.model: model for model in device.twin.models}
        for name, wanted in {} if desired is None else desired.models.items():
            twin = twins.get(name)
            has = None if twin is None or twin.active is None else twin.active
            release = wanted.assignment.release
            if name not in changing and (has is None or has.bundle_sha256 != release.bundle_sha256):
                counts[name, "" if has is None else has.version, release.version] += 1
    for (model, has_version, wanted_version), count in sorted(counts.items()):
        serve = f"serve {has_version}" if has_version else "serve none"
        yield Coming(kind="behind", name=model, text=f"{count} devices {serve} and should serve {wanted_version}")
