"""After a loss: power that comes back, a slot whose files are damaged, a release that does not load.

    power ─▶ what serves serves again, what was under way is taken up where it was
    slot  ─▶ standby takes over; without one, the release is fetched again

Pure, as `update`, which draws the whole machine.
"""

from dataclasses import replace
from typing import assert_never

from muster_agent.core import activation
from muster_agent.core.deadlines import deadlines, look_s
from muster_agent.core.events import (
    BeginTrial,
    Effect,
    EndTrial,
    FetchFiles,
    FetchManifest,
    OpenWindow,
    Report,
    Retire,
    SelfTest,
    Serve,
    WakeAt,
)
from muster_agent.core.probation import fail, turn_back
from muster_agent.core.reports import outcome, settled
from muster_agent.core.state import ModelState, Phase, Slots, Update
from muster_shared.ids import ModelName, Sha256
from muster_shared.messages import FaultSeen, Refusal

BOOTS_MAX = 3  # On live inputs: two unlucky power cuts are forgiven, a release that takes the device down is not.


def power_came_back(
    name: ModelName, model: ModelState, broken: frozenset[Sha256], now: float
) -> tuple[ModelState, list[Effect]]:
    """Take up one model after a start. `broken`: bundles whose files are not what they were."""
    slots, update = model.slots, model.update
    if slots.standby is not None and slots.standby.bundle_sha256 in broken:
        slots = replace(slots, standby=None)
        model = replace(model, slots=slots)
    if slots.active is not None and slots.active.bundle_sha256 in broken:
        return _slot_lost(name, model, f"the files of {name} {slots.active.version} are damaged", now)
    if update is None:
        return model, _serve(model)
    update = replace(update, cleared=False)  # Nobody knows how long it was dark.
    model = replace(model, update=update)
    if update.phase in (Phase.TRYING, Phase.PROBATION):
        update = replace(update, boots=update.boots + 1)
        if update.boots >= BOOTS_MAX:
            return _took_down(model, update, now)
        model = replace(model, update=update)
    model, effects = _take_up(model, update, now)
    return model, _serve(model) + effects


def serve_failed(model: ModelState, bundle: Sha256, detail: str, now: float) -> tuple[ModelState, list[Effect]]:
    """Leave a slot that should serve and does not load."""
    active = model.slots.active
    if active is None or active.bundle_sha256 != bundle:
        return model, []
    return _slot_lost(active.model, model, f"{active.model} {active.version} does not load: {detail}", now)


def _took_down(model: ModelState, update: Update, now: float) -> tuple[ModelState, list[Effect]]:
    if update.phase is Phase.TRYING:
        detail = f"the agent started {update.boots} times during the trial"
        model, effects = fail(model, update, Refusal.TRIAL_FAILED, detail, now)
    else:
        model, effects = turn_back(model, update, f"the agent started {update.boots} times during probation", now)
    return model, effects if effects[-1:] and isinstance(effects[-1], Serve) else [*effects, *_serve(model)]


def _slot_lost(name: ModelName, model: ModelState, detail: str, now: float) -> tuple[ModelState, list[Effect]]:
    """The active slot cannot serve: standby takes over, or the release is fetched again."""
    effects: list[Effect] = [Report(FaultSeen(model=name, detail=detail))]
    lost, update, judged, failed = model.slots.active, model.update, model.settled, model.failed
    assert lost is not None
    if update is not None and (update.phase is Phase.PROBATION or update.sham):
        effects += outcome(update, False, detail)
        judged = settled(model, update, good=False)
        update = None
    standby = model.slots.standby
    if standby is not None:
        effects += [Serve(standby)]
        model = ModelState(Slots(active=standby), update, judged, last_error=detail, failed=failed)
    else:
        effects += [Retire(name)]
        if update is None:
            update = Update(lost, None, Phase.MANIFEST, began_at=now, deadline_at=None)
        model = ModelState(Slots(), update, judged, last_error=detail, failed=failed)
    if model.update is None:
        return model, effects
    model, more = _take_up(model, model.update, now)
    return model, effects + more


def _take_up(model: ModelState, update: Update, now: float) -> tuple[ModelState, list[Effect]]:
    """Ask again for what `update` waits for."""
    effects: list[Effect] = []
    watch, active = update.watch, model.slots.active
    serves = active is not None and active.bundle_sha256 == update.release.bundle_sha256
    if update.phase is Phase.TRYING and (active is None or serves):
        effects.append(EndTrial(update.release))  # There is nothing else any more to compare it with.
        update = replace(update, phase=Phase.READY)
    if update.phase is Phase.TRYING and update.activation is not None and update.activation.windows:
        # The window in which the trial began may have closed meanwhile: it is proven again, and asks again.
        effects.append(EndTrial(update.release))
        update = replace(activation.over(update, now), phase=Phase.TESTING, aside=False)
    if update.phase is Phase.READY and not update.sham and (active is None or serves or not update.aside):
        # What was loaded is gone, or has nothing before it any more: prove it again.
        update = replace(activation.over(update, now), phase=Phase.TESTING, aside=False)
    match update.phase:
        case Phase.WAITING | Phase.READY:
            update, questions = activation.look(model, update)
            assert questions, "it would not be in this phase if nothing were to be asked"
            effects += questions
        case Phase.MANIFEST:
            effects.append(FetchManifest(update.release))
        case Phase.FILES:
            effects.append(FetchFiles(update.release))
        case Phase.TESTING:
            effects.append(SelfTest(update.release))
        case Phase.TRYING:
            trial = update.trial
            assert trial is not None, "it would not be in this phase"
            update = replace(update, trying_from=now)
            effects += [BeginTrial(update.release, trial), WakeAt(now + look_s(trial.seconds_max))]
        case Phase.PROBATION:
            update = replace(update, window_from=now)
            effects += [OpenWindow(update.release), WakeAt(now + (watch.window_s if watch else 0.0))]
        case _:
            assert_never(update.phase)
    if update.phase is not Phase.PROBATION:
        effects += deadlines(update)
    if update.deferral is not None:
        effects.append(WakeAt(update.deferral.until))
    return replace(model, update=update), effects


def _serve(model: ModelState) -> list[Effect]:
    return [] if model.slots.active is None else [Serve(model.slots.active)]
