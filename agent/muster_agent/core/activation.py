"""May the device change now? Maintenance windows, its own rules, and how long it may say "later".

    look ──▶ ReadClock ── within a window ──▶ AskConsent ── given ──▶ `over`: deadlines go on
                 └── outside ──▶ `defer` ◀── deferred ──┘
                                    └── at `until`: look again … defer_s_max: no consent

Asked before a download (by the rules alone) and before the switch. Pure; what follows from the answers is in `update`.
A held-back control waits for the same windows, so that both arms are measured at the same time of day; its own rules
have nothing to say, because nothing changes. Where nothing serves there is nothing to disturb: only its download asks.
"""

from collections.abc import Iterable
from dataclasses import replace

from muster_agent.core import reports
from muster_agent.core.events import AskConsent, Effect, ReadClock, WakeAt
from muster_agent.core.state import Deferral, ModelState, Phase, Stage, Update
from muster_shared.assignment import DAY_MINUTES, MaintenanceWindow
from muster_shared.messages import Step

WEEK_MINUTES = 7 * DAY_MINUTES
LOOK_S_MAX = 3600.0  # The local clock may be turned meanwhile: at most this late, or early, is a window noticed.
LOOK_S_MIN = 1.0
ANSWER_S = 60.0  # A hook is killed long before.
TOLD_GAP_S = 60.0  # However often a hook finds other words.
REASON_MAX = 160
STAGES = {Phase.WAITING: Stage.DOWNLOAD, Phase.READY: Stage.ACTIVATE}
"""What is asked in which phase."""


def look(model: ModelState, update: Update) -> tuple[Update, list[Effect]]:
    """Return what to ask before `update` goes on; nothing: it may go on."""
    update = replace(update, asking=None)
    activation, active = update.activation, model.slots.active
    if activation is None:
        return update, []
    serves = active is not None and active.bundle_sha256 == update.release.bundle_sha256
    if update.phase is Phase.READY and not update.sham and (active is None or serves):
        return update, []
    if update.phase is Phase.READY and activation.windows:
        return update, [ReadClock(update.release)]
    return ask(update)


def ask(update: Update) -> tuple[Update, list[Effect]]:
    """Return the question to the device's own rules, if they have a say."""
    if update.activation is None or not update.activation.consent or update.sham:
        return update, []
    stage = STAGES[update.phase]
    return replace(update, asking=stage), [AskConsent(update.release, stage)]


def opens_in(windows: Iterable[MaintenanceWindow], weekday: int, minute: int) -> int | None:
    """Return in how many minutes of the local clock one of `windows` is open: 0 now, None never.

    Args:
        weekday: Monday is 0.
        minute: Of the day, 0..1439.
    """
    now = weekday * DAY_MINUTES + minute
    waits: list[int] = []
    for window in windows:
        for day in window.days:
            since = (now - day * DAY_MINUTES - window.start_minute) % WEEK_MINUTES
            waits.append(0 if since < window.minutes else WEEK_MINUTES - since)
    return min(waits, default=None)


def defer(update: Update, reason: str, wait_s: float, now: float) -> tuple[Update, list[Effect]]:
    """Return `update`, put off: it is looked at again after `wait_s`, within LOOK_S_MIN..LOOK_S_MAX.

    It is reported when it begins, and when its reason becomes another.
    """
    before = update.deferral
    reason = f"{STAGES[update.phase].value}: {reason}"[:REASON_MAX]
    until = now + min(max(wait_s, LOOK_S_MIN), LOOK_S_MAX)
    tell = before is None or (reason != before.told and not before.told_at <= now < before.told_at + TOLD_GAP_S)
    if before is None or tell:
        deferral = Deferral(reason, now if before is None else before.since, until, reason, now)
    else:
        deferral = replace(before, reason=reason, until=until)
    update = replace(update, asking=None, deferral=deferral)
    effects: list[Effect] = [WakeAt(min(until, _ends_at(update, deferral)))]
    return update, [reports.step(update, Step.DEFERRED, now, detail=reason, until=until), *effects] if tell else effects


def over(update: Update, now: float) -> Update:
    """Return `update`, which goes on: the time that it was deferred does not count for its deadlines."""
    if update.deferral is None:
        return replace(update, asking=None)
    spent = max(0.0, now - update.deferral.since)
    return replace(
        update,
        asking=None,
        deferral=None,
        deferred_s=update.deferred_s + spent,
        deadline_at=None if update.deadline_at is None else update.deadline_at + spent,
        download_at=None if update.download_at is None else update.download_at + spent,
    )


def too_late(update: Update, now: float) -> str | None:
    """Return why `update` is not put off any longer; None while it may be."""
    deferral, activation = update.deferral, update.activation
    if deferral is None or activation is None or now < _ends_at(update, deferral):
        return None
    spent = update.deferred_s + max(0.0, now - deferral.since)
    return f"deferred for {spent:.0f} s, {activation.defer_s_max:g} are allowed; {deferral.reason}"


def look_again(model: ModelState, update: Update, now: float) -> tuple[Update, list[Effect]]:
    """Return what a deferred update does at a wake-up: nothing before its time, then it asks again.

    The effects are not empty, unless nothing is left to be asked.
    """
    deferral = update.deferral
    assert deferral is not None, "whoever is not deferred need not look"
    # A clock that was set back must not put it off.
    deferral = replace(deferral, since=min(deferral.since, now), until=min(deferral.until, now + LOOK_S_MAX))
    if now < deferral.until:
        return replace(update, deferral=deferral), [WakeAt(min(deferral.until, _ends_at(update, deferral)))]
    deferral = replace(deferral, until=now + ANSWER_S)  # In case nobody answers.
    update, effects = look(model, replace(update, deferral=deferral))
    return update, [*effects, WakeAt(min(deferral.until, _ends_at(update, deferral)))] if effects else []


def _ends_at(update: Update, deferral: Deferral) -> float:
    most = 0.0 if update.activation is None else update.activation.defer_s_max
    return deferral.since + most - update.deferred_s
