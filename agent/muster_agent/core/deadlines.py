"""When an update must be where, and when to look at it again.

    issue ── download_s ──▶ all bytes here      issue ── deadline_s ──▶ outcome      what is deferred comes on top

Pure. What follows from a deadline that passed is in `update`.
"""

from dataclasses import replace

from muster_agent.core.events import Effect, ReadTrial, WakeAt
from muster_agent.core.state import Phase, Update

_DOWNLOADING = (Phase.WAITING, Phase.MANIFEST, Phase.FILES)
TRIAL_LOOKS = 20  # Over the whole trial, but
TRIAL_LOOK_S_MAX = 10.0  # not rarer,
TRIAL_LOOK_S_MIN = 0.5  # nor more often.


def with_clock(update: Update, now: float) -> Update:
    """Return `update` with deadlines that a clock which was set back does not put off."""
    watch = update.watch
    if watch is None:
        return update
    deadline_at, download_at = update.deadline_at, update.download_at
    if deadline_at is not None:
        deadline_at = min(deadline_at, now + watch.deadline_s)
    if download_at is not None and watch.download_s is not None:
        download_at = min(download_at, now + watch.download_s)
    return replace(update, deadline_at=deadline_at, download_at=download_at, trying_from=min(update.trying_from, now))


def overdue(update: Update, now: float) -> str:
    """Return which deadline has passed; empty: none."""
    if update.phase in _DOWNLOADING and update.download_at is not None and now >= update.download_at:
        return f"download: still {update.phase.value} when all bytes should be here"
    if update.deadline_at is not None and now >= update.deadline_at:
        return f"still {update.phase.value} at the deadline"
    return ""


def deadlines(update: Update) -> list[Effect]:
    """Return the wake-ups that `overdue` needs."""
    moments = (update.deadline_at, update.download_at if update.phase in _DOWNLOADING else None)
    return [WakeAt(at) for at in moments if at is not None]


def trial_looks(update: Update, now: float) -> list[Effect]:
    """Return what a trial under way needs at a wake-up."""
    if update.phase is not Phase.TRYING or update.trial is None:
        return []
    every_s = look_s(update.trial.seconds_max)
    # On a grid: whoever else wakes the device must not begin a second row of looks.
    ahead_s = every_s - (now - update.trying_from) % every_s
    return [ReadTrial(update.release), WakeAt(now + ahead_s)]


def look_s(seconds_max: float) -> float:
    """Return how often a trial of at most so many seconds is looked at."""
    return min(max(seconds_max / TRIAL_LOOKS, TRIAL_LOOK_S_MIN), TRIAL_LOOK_S_MAX)
