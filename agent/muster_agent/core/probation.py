"""How an update ends: the probation window, its judgement, the way back to standby, and failure before the switch.

    switch ─▶ OpenWindow ─▶ WindowMeasured ─┬─ good, or silent for too long ─▶ committed
                                            └─ bad ─▶ `turn_back`: standby serves again, without a download

Pure, as `update`, which draws the whole machine.
"""

from dataclasses import replace
from typing import assert_never

from muster_agent.core.events import (
    Effect,
    EndTrial,
    Measure,
    MeasureBefore,
    OpenWindow,
    Serve,
    StopFetching,
    WakeAt,
)
from muster_agent.core.health import Health, judge
from muster_agent.core.reports import outcome, settled, step
from muster_agent.core.state import ModelState, Phase, Slots, Update
from muster_shared.bundle import Slo
from muster_shared.messages import Refusal, ReleaseRef, Step, WindowReport

WINDOW_SLACK_S = 0.1  # A wake-up may come a little early by the other clock.


def measure_before(update: Update, serving: ReleaseRef | None) -> list[Effect]:
    """Return the question how long `serving` took in the time before the window of `update`."""
    watch = update.watch
    if watch is None or serving is None:
        return []
    return [MeasureBefore(update.release, serving, watch.window_s, max(1, watch.requests_min))]


def open_window(model: ModelState, update: Update, now: float) -> tuple[ModelState, list[Effect]]:
    """Begin the probation of a watched release, which serves."""
    watch = update.watch
    assert watch is not None, "nobody watches it"
    update = replace(update, phase=Phase.PROBATION, window_from=now, boots=0)
    return replace(model, update=update), [OpenWindow(update.release), WakeAt(now + watch.window_s)]


def wake_in_probation(model: ModelState, update: Update, now: float) -> tuple[ModelState, list[Effect]]:
    if update.watch is None or update.window_from is None:
        return model, []
    window_from = min(update.window_from, now)  # A clock that was set back must not hold the window open for ever.
    if window_from != update.window_from:
        model = replace(model, update=replace(update, window_from=window_from))
    if now >= window_from + update.watch.window_s:
        return model, [Measure(update.release)]
    return model, [WakeAt(window_from + update.watch.window_s)]


def window_measured(
    model: ModelState, update: Update, window: WindowReport, slo: Slo, now: float
) -> tuple[ModelState, list[Effect]]:
    watch = update.watch
    assert watch is not None  # Only a watched release is in probation.
    assert update.window_from is not None
    if window.seconds < watch.window_s - WINDOW_SLACK_S:
        # The wall clock was set forward; the window is measured by one that nobody sets.
        update = replace(update, window_from=now - window.seconds)
        return replace(model, update=update), [WakeAt(now + watch.window_s - window.seconds)]
    judgement = judge(window, slo, watch.requests_min)
    match judgement.health:
        case Health.BAD:
            return turn_back(model, update, judgement.reason, now, window)
        case Health.TOO_LITTLE if window.seconds < watch.window_max_s - WINDOW_SLACK_S:
            return model, [WakeAt(now + min(max(watch.window_s / 2, 0.5), watch.window_max_s - window.seconds))]
        case Health.TOO_LITTLE:
            reason = f"no traffic to judge by ({judgement.reason}); the golden cases passed"
        case Health.GOOD:
            reason = judgement.reason
        case _:
            assert_never(judgement.health)
    effects = outcome(update, True, reason, window)
    if not update.sham:
        effects.append(step(update, Step.COMMITTED, now))
    return replace(model, update=None, settled=settled(model, update, good=True)), effects


def turn_back(
    model: ModelState, update: Update, reason: str, now: float, window: WindowReport | None = None
) -> tuple[ModelState, list[Effect]]:
    """End a probation badly: back to standby where there is one. A control has nothing newer to leave."""
    effects = outcome(update, False, reason, window)
    judged = settled(model, update, good=False)
    standby = model.slots.standby
    if update.sham or standby is None:
        return replace(model, update=None, settled=judged, last_error=reason), effects
    effects += [step(update, Step.ROLLED_BACK, now, detail=reason), Serve(standby)]
    return ModelState(slots=Slots(active=standby), settled=judged, last_error=reason, failed=update.release), effects


def fail(
    model: ModelState, update: Update, refusal: Refusal, detail: str, now: float
) -> tuple[ModelState, list[Effect]]:
    """End an update before its release served; what there is of it stays for another attempt, unless room is short."""
    effects: list[Effect] = [EndTrial(update.release)] if update.phase is Phase.TRYING else []
    effects += [
        StopFetching(update.release.bundle_sha256),
        step(update, Step.FAILED, now, refusal, detail),
        *outcome(update, False, f"{refusal.value}: {detail}"),
    ]
    return replace(
        model,
        update=None,
        settled=settled(model, update, good=False),
        last_error=f"{refusal.value}: {detail}",
        failed=None if update.sham or refusal is Refusal.DISK_FULL else update.release,
    ), effects
