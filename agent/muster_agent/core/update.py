"""The update machine: every transition of a device's models stands here, and in `recovery` those after a loss.

    AssignmentArrived (device, counter, expiry and target fit)
        ├─ new release ─▶ WAITING ─▶ MANIFEST ─▶ FILES ─┐    ┌── it was put off ──┐
        │                (consent)                      ▼    ▼                    │
        ├─ in standby ────────────────────────────────▶ TESTING ──────────▶ READY ┘
        │                                           (golden cases)    (windows, consent)
        └─ already active, watched: a held-back control ──────────────────▶ │
                                                                            ├─▶ TRYING (live inputs)
                                                                            │      │
                                                                     switch ▼      ▼ switch
        before the switch: failed, what served goes on serving              PROBATION ─┬─▶ committed
                                                                                       └─▶ back to standby

`advance(state, event, now) -> (state, effects)`. The caller saves the state and the `Report`s in one transaction, then
carries out the rest; each effect may be repeated, because after power loss `PowerCameBack` issues it again.

WAITING and READY are passed at once where the watch asks for nothing (`activation` has its rules), TRYING where it
wants no trial (`trial`). A device that is called back (no watch) is never deferred: neither windows, nor its own rules,
nor a trial stand between it and the release that its operator wants back.
"""

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import assert_never

from muster_agent.core import activation, recovery
from muster_agent.core.deadlines import deadlines, look_s, overdue, trial_looks, with_clock
from muster_agent.core.events import (
    AssignmentArrived,
    BeforeMeasured,
    BeginTrial,
    ClockRead,
    Collect,
    ConsentDeferred,
    ConsentGiven,
    Effect,
    EndTrial,
    Event,
    FetchFailed,
    FetchFiles,
    FetchManifest,
    FilesReady,
    ManifestReady,
    PowerCameBack,
    Report,
    Retire,
    SelfTest,
    SelfTestDone,
    Serve,
    ServeFailed,
    StopFetching,
    TimeCame,
    TrialMeasured,
    TrialRefused,
    UpdateEvent,
    WakeAt,
    WindowMeasured,
)
from muster_agent.core.probation import fail, measure_before, open_window, wake_in_probation, window_measured
from muster_agent.core.reports import step
from muster_agent.core.state import DeviceState, ModelState, Phase, Slots, Tried, Update
from muster_agent.core.trial import Passing, TrialVerdict, judge, too_little
from muster_agent.core.trust import Target
from muster_shared.assignment import Assignment, ModelAssignment, Watch
from muster_shared.bundle import Manifest, target_path
from muster_shared.ids import ModelName, Sha256
from muster_shared.messages import AssignmentRefused, Hardware, Refusal, ReleaseRef, Step
from muster_shared.variants import choose

__all__ = (
    "AssignmentArrived",
    "Effect",
    "Event",
    "FilesReady",
    "Report",
    "Result",
    "SelfTestDone",
    "TimeCame",
    "advance",
    "kept",
)

Result = tuple[DeviceState, tuple[Effect, ...]]

FORMER_KEYS = 64  # One a year, or a few after a theft: none is forgotten in the life of a device.


def advance(state: DeviceState, event: Event, now: float) -> Result:
    """Return the state after `event` at `now` (Unix seconds), and what to do about it."""
    match event:
        case AssignmentArrived():
            return _assignment(state, event, now)
        case PowerCameBack(broken):
            return _each_model(
                state, lambda name, model: recovery.power_came_back(name, model, broken, now), collect=True
            )
        case TimeCame():
            return _each_model(state, lambda _, model: _time_came(model, now))
        case ServeFailed(bundle, detail):
            return _each_model(state, lambda _, model: recovery.serve_failed(model, bundle, detail, now), collect=True)
        case _:
            for name in sorted(state.models):
                model = state.models[name]
                if model.update is not None and model.update.release.bundle_sha256 == event.bundle:
                    return _update(state, name, model, model.update, event, now)
            return state, ()  # It was called off meanwhile.


def kept(state: DeviceState) -> frozenset[Sha256]:
    """Return the bundles whose files must stay: both slots and the update of each model, and what failed last."""
    return _running(state) | _resting(state)


def _running(state: DeviceState) -> frozenset[Sha256]:
    return frozenset(
        release.bundle_sha256
        for model in state.models.values()
        for release in (model.slots.active, model.slots.standby, _underway(model))
        if release is not None
    )


def _underway(model: ModelState) -> ReleaseRef | None:
    return None if model.update is None or model.update.aside else model.update.release


def _resting(state: DeviceState) -> frozenset[Sha256]:
    resting = {model.failed.bundle_sha256 for model in state.models.values() if model.failed is not None}
    for model in state.models.values():
        if model.update is not None and model.update.aside:
            resting.add(model.update.release.bundle_sha256)
    return frozenset(resting) - _running(state)


def _collect(state: DeviceState) -> Collect:
    return Collect(kept(state), _resting(state))


# -- assignments -------------------------------------------------------------------------------------------------------


def _assignment(state: DeviceState, event: AssignmentArrived, now: float) -> Result:
    assignment = event.assignment
    if (assignment.fleet, assignment.device) != (state.fleet, state.device):
        return state, (
            _refuse(assignment, Refusal.OTHER_DEVICE, f"it is for {assignment.device} of {assignment.fleet}"),
        )
    if assignment.counter == state.counter and event.digest == state.assignment:
        # Retained topics say the same thing at every connect. (A state of an earlier agent has no keys yet.)
        return (state if state.keys else replace(state, keys=_obeyed(state, event))), ()
    floor = _floor(state, event.keys)
    if assignment.counter <= floor:
        return state, (_refuse(assignment, Refusal.REPLAYED, f"counter {assignment.counter}, already at {floor}"),)
    if assignment.expires_at <= now:
        return state, (_refuse(assignment, Refusal.EXPIRED, f"{now - assignment.expires_at:.0f} s past its date"),)
    for wanted in assignment.models:
        problem = _target_problem(wanted.release, event.targets)
        if problem:
            return state, (_refuse(assignment, Refusal.NOT_A_TARGET, problem),)

    models: dict[ModelName, ModelState] = {}
    effects: list[Effect] = []
    for wanted in assignment.models:
        name = wanted.release.model
        models[name], more = _aim(state.models.get(name, ModelState()), wanted, now)
        effects += more
    for name in sorted(state.models.keys() - models.keys()):
        update = state.models[name].update
        if update is not None:
            effects.append(StopFetching(update.release.bundle_sha256))
        effects.append(Retire(name))
    state = replace(state, counter=assignment.counter, assignment=event.digest, models=models)
    return replace(state, keys=_obeyed(state, event)), (*effects, _collect(state))


def _floor(state: DeviceState, keys: tuple[str, ...]) -> int:
    """Return the counter above which an assignment is news.

    Counters that were obeyed while none of today's keys was in force mean nothing: nothing of then verifies any more,
    and whoever stole a key of then may have raised them to the end (TUF 5.3.11, fast-forward recovery). One key that
    stays, or comes back, keeps them: what it signed then verifies now.
    """
    if not (state.keys and keys):
        return state.counter
    return max((state.keys[key] for key in keys if key in state.keys), default=0)


def _obeyed(state: DeviceState, event: AssignmentArrived) -> Mapping[str, int]:
    """Return the keys with what they have seen obeyed: today's last, of former ones the newest `FORMER_KEYS`."""
    former = [(key, counter) for key, counter in state.keys.items() if key not in event.keys][-FORMER_KEYS:]
    return {**dict(former), **dict.fromkeys(event.keys, event.assignment.counter)}


def _target_problem(release: ReleaseRef, targets: Mapping[str, Target]) -> str | None:
    path = target_path(release.model, release.version)
    target = targets.get(path)
    if target is None:
        return f"{path} is not among the targets that the release keys signed"
    if (target.sha256, target.length) != (release.bundle_sha256, release.bundle_length):
        return f"{path} is signed with the digest {target.sha256[:12]}…, but {release.bundle_sha256[:12]}… was assigned"
    return None


def _aim(model: ModelState, wanted: ModelAssignment, now: float) -> tuple[ModelState, list[Effect]]:
    """Turn one model towards `wanted`: go on, call off, go back to standby, watch, or begin to fetch."""
    release, watch, update = wanted.release, wanted.watch, model.update
    if update is None and _is_settled(model, release, watch):
        return model, []  # It was judged, perhaps rolled back; this assignment is for another model's sake.
    if update is not None and _mends(model, update, release) and _was_judged(model, release, watch):
        return model, []  # A slot was lost since, and is filled again by itself: there is nothing left to judge.
    if update is not None and update.release.bundle_sha256 == release.bundle_sha256 and update.watch == watch:
        return model, []
    effects = [] if update is None else _leave(update, release, now)
    if _was_judged(model, release, watch):
        watch = None  # Its slot was lost since. One attempt is judged once; what is left is to have it again.
    model = replace(model, failed=None)
    fresh = Update(
        release=release,
        watch=watch,
        phase=Phase.MANIFEST,
        began_at=now,
        deadline_at=None if watch is None else now + watch.deadline_s,
        download_at=None if watch is None or watch.download_s is None else now + watch.download_s,
    )
    active = model.slots.active
    if active is not None and active.bundle_sha256 == release.bundle_sha256:
        model = replace(model, slots=replace(model.slots, active=release))
        return _keep_serving(model, fresh, update, effects, now)
    effects += [step(fresh, Step.ACCEPTED, now), *deadlines(fresh)]
    if model.slots.holds(release.bundle_sha256) is not None:
        fresh = replace(fresh, phase=Phase.TESTING)
        return replace(model, update=fresh), [*effects, SelfTest(release)]
    fresh = replace(fresh, phase=Phase.WAITING)
    model, more = _gate(replace(model, update=fresh), fresh, now)
    return model, effects + more


def _leave(update: Update, release: ReleaseRef, now: float) -> list[Effect]:
    """Return what ends `update` for the sake of `release`, which may be the same."""
    effects: list[Effect] = [EndTrial(update.release)] if update.phase is Phase.TRYING else []
    if update.release.bundle_sha256 != release.bundle_sha256 and update.phase is not Phase.PROBATION:
        effects += [StopFetching(update.release.bundle_sha256), step(update, Step.CANCELLED, now)]
    return effects


def _keep_serving(
    model: ModelState, fresh: Update, before: Update | None, effects: list[Effect], now: float
) -> tuple[ModelState, list[Effect]]:
    """Aim at what serves already: commit it, or watch it."""
    if fresh.watch is None:
        if before is not None:
            effects.append(step(fresh, Step.COMMITTED, now))
        return replace(model, update=None, last_error=None), effects
    effects.append(step(fresh, Step.ACCEPTED, now))
    if before is None or before.sham or before.release.bundle_sha256 != fresh.release.bundle_sha256:
        fresh = replace(fresh, phase=Phase.READY, sham=True)
        model, more = _gate(replace(model, update=fresh), fresh, now)
        return model, effects + more
    fresh = replace(fresh, tried=before.tried, latency_ms_p95_before=before.latency_ms_p95_before)
    model, more = open_window(model, fresh, now)
    return model, effects + more


def _is_settled(model: ModelState, release: ReleaseRef, watch: Watch | None) -> bool:
    """Return whether `watch` over `release` had its outcome, and what followed from it still stands."""
    settled, active = model.settled, model.slots.active
    if settled is not None and settled.good and (active is None or active.bundle_sha256 != settled.bundle):
        return False
    return _was_judged(model, release, watch, also_later=settled is not None and settled.good)


def _mends(model: ModelState, update: Update, release: ReleaseRef) -> bool:
    """Return whether `update`, which nobody watches, brings back what serves beside or instead of `release`."""
    is_bad = model.settled is not None and not model.settled.good
    return update.watch is None and (is_bad or update.release.bundle_sha256 == release.bundle_sha256)


def _was_judged(model: ModelState, release: ReleaseRef, watch: Watch | None, *, also_later: bool = False) -> bool:
    """Return whether `watch` over `release` had its outcome, in this attempt or (`also_later`) any before it."""
    settled = model.settled
    if settled is None or watch is None:
        return False
    if (settled.bundle, settled.rollout, settled.wave) != (release.bundle_sha256, watch.rollout, watch.wave):
        return False
    return also_later or watch.attempt <= settled.attempt


# -- one update --------------------------------------------------------------------------------------------------------


def _update(
    state: DeviceState,
    name: ModelName,
    model: ModelState,
    update: Update,
    event: UpdateEvent,
    now: float,
) -> Result:
    """Let `event` happen to `update`; in a phase that does not wait for it, it changes nothing."""
    effects: list[Effect]
    match event, update.phase:
        case ManifestReady(_, manifest, hardware), Phase.MANIFEST:
            refusal, detail = _manifest_problem(manifest, update.release, hardware)
            if refusal is not None:
                model, effects = fail(model, update, refusal, detail, now)
            else:
                update = replace(update, phase=Phase.FILES)
                model = replace(model, update=update)
                effects = [step(update, Step.FETCHING, now), FetchFiles(update.release)]
        case FilesReady(_, bytes_fetched), Phase.FILES:
            update = replace(update, phase=Phase.TESTING, bytes_fetched=bytes_fetched)
            model = replace(model, update=update)
            effects = [step(update, Step.TESTING, now), SelfTest(update.release)]
        case FetchFailed(_, failed, detail), Phase.MANIFEST | Phase.FILES:
            model, effects = fail(model, update, failed, detail, now)
        case SelfTestDone(_, None, _), Phase.TESTING:
            model, effects = _gate(model, replace(update, phase=Phase.READY), now)
        case SelfTestDone(_, failed, detail), Phase.TESTING:
            assert failed is not None
            model, effects = fail(model, update, failed, detail, now)
        case ClockRead(_, weekday, minute), Phase.READY if update.asking is None:
            model, effects = _clock_read(model, update, weekday, minute, now)
        case ConsentGiven(_, stage), Phase.WAITING | Phase.READY if update.asking is stage:
            model, effects = _go_on(model, update, now)
        case ConsentDeferred(_, stage, reason, retry_after_s), Phase.WAITING | Phase.READY if update.asking is stage:
            model, effects = _defer(model, update, reason, retry_after_s, now)
        case TrialMeasured(_, reading), Phase.TRYING:
            assert update.trial is not None, "it would not be in this phase"
            verdict = judge(update.trial, reading)
            tried = Tried(reading.compared, reading.disagreed, reading.latency_ms_p95, verdict.detail)
            model, effects = _tried(model, replace(update, tried=tried), verdict, now)
        case TrialRefused(_, detail), Phase.TRYING:
            assert update.trial is not None, "it would not be in this phase"
            verdict = too_little(update.trial, detail)
            model, effects = _tried(model, replace(update, tried=Tried(0, 0, None, detail)), verdict, now)
        case BeforeMeasured(_, latency_ms_p95), Phase.PROBATION:
            model, effects = replace(model, update=replace(update, latency_ms_p95_before=latency_ms_p95)), []
        case WindowMeasured(_, window, slo), Phase.PROBATION if update.watch is not None:
            model, effects = window_measured(model, update, window, slo, now)
        case _:
            return state, ()
    return _with_models(state, {**state.models, name: model}, effects, collect=model.update is None)


def _manifest_problem(
    manifest: Manifest, release: ReleaseRef, hardware: Hardware
) -> tuple[Refusal, str] | tuple[None, str]:
    if (manifest.model, manifest.version, manifest.release) != (release.model, release.version, release.release):
        return Refusal.MANIFEST_INVALID, f"bundle.json is of {manifest.model} {manifest.version}, not what was assigned"
    if choose(manifest, hardware) is None:
        variants = ", ".join(f"{variant.name} ({variant.runtime})" for variant in manifest.variants)
        return Refusal.WRONG_HARDWARE, (
            f"no variant of {variants} fits {hardware.arch} with {'/'.join(hardware.accelerators)},"
            f" {hardware.memory_mb} MB and {', '.join(hardware.runtimes) or 'no engine'}"
        )
    return None, ""


# -- may it, and does it do --------------------------------------------------------------------------------------------


def _gate(model: ModelState, update: Update, now: float) -> tuple[ModelState, list[Effect]]:
    """Ask what is to be asked in WAITING or READY; go on where nothing is."""
    update, effects = (update, []) if update.cleared else activation.look(model, update)
    return (replace(model, update=update), effects) if effects else _go_on(model, update, now)


def _clock_read(
    model: ModelState, update: Update, weekday: int, minute: int, now: float
) -> tuple[ModelState, list[Effect]]:
    windows = () if update.activation is None else update.activation.windows
    minutes = activation.opens_in(windows, weekday, minute)
    if minutes != 0:
        wait_s = activation.LOOK_S_MAX if minutes is None else minutes * 60.0
        return _defer(model, update, "outside its maintenance windows", wait_s, now)
    update, effects = activation.ask(update)
    return (replace(model, update=update), effects) if effects else _go_on(model, update, now)


def _defer(
    model: ModelState, update: Update, reason: str, wait_s: float, now: float
) -> tuple[ModelState, list[Effect]]:
    update, effects = activation.defer(update, reason, wait_s, now)
    too_late = activation.too_late(update, now)
    if too_late is not None:
        return fail(model, update, Refusal.NO_CONSENT, too_late, now)
    return replace(model, update=replace(update, aside=update.phase is Phase.READY and not update.sham)), effects


def _go_on(model: ModelState, update: Update, now: float) -> tuple[ModelState, list[Effect]]:
    """Leave WAITING or READY: nothing speaks against it."""
    update = activation.over(update, now)
    if update.phase is Phase.WAITING:
        update = replace(update, phase=Phase.MANIFEST)
        return replace(model, update=update), [*deadlines(update), FetchManifest(update.release)]
    if update.aside:
        update = replace(update, phase=Phase.TESTING, aside=False, cleared=True)
        return replace(model, update=update), [*deadlines(update), SelfTest(update.release)]
    if update.sham:
        before = measure_before(update, update.release)
        model, opening = open_window(model, update, now)
        return model, before + opening
    trial, active = update.trial, model.slots.active
    if trial is None or active is None or active.bundle_sha256 == update.release.bundle_sha256:
        return _switch(model, update, now)
    update = replace(update, phase=Phase.TRYING, trying_from=now, boots=0)
    return replace(model, update=update), [
        step(update, Step.TRYING, now),
        BeginTrial(update.release, trial),
        WakeAt(now + look_s(trial.seconds_max)),
        *deadlines(update),
    ]


def _tried(model: ModelState, update: Update, verdict: TrialVerdict, now: float) -> tuple[ModelState, list[Effect]]:
    match verdict.passing:
        case Passing.UNDECIDED:
            return model, []
        case Passing.PASSES:
            return _switch(model, update, now)
        case Passing.FAILS:
            return fail(model, update, Refusal.TRIAL_FAILED, verdict.detail, now)
        case _:
            assert_never(verdict.passing)


def _switch(model: ModelState, update: Update, now: float) -> tuple[ModelState, list[Effect]]:
    previous, release, watch = model.slots.active, update.release, update.watch
    standby = previous
    if previous is not None and previous.bundle_sha256 == release.bundle_sha256:
        standby = model.slots.standby  # It took over meanwhile, because the slot that served was lost.
    slots = Slots(active=release, standby=standby)
    back = previous is not None and release.release < previous.release
    reached = Step.ROLLED_BACK if back else Step.SWITCHED
    detail = "" if update.tried is None else update.tried.detail
    effects: list[Effect] = [step(update, reached, now, detail=detail)]
    model = replace(model, slots=slots, last_error=None)
    if watch is None:
        return replace(model, update=None), [*effects, Serve(release), step(update, Step.COMMITTED, now)]
    effects += [*measure_before(update, previous), Serve(release)]
    model, opening = open_window(model, update, now)
    return model, effects + opening


# -- time --------------------------------------------------------------------------------------------------------------


def _time_came(model: ModelState, now: float) -> tuple[ModelState, list[Effect]]:
    update = model.update
    if update is None:
        return model, []
    if update.phase is Phase.PROBATION:
        return wake_in_probation(model, update, now)
    if update.deferral is not None:
        update, effects = activation.look_again(model, update, now)
        too_late = activation.too_late(update, now)
        if too_late is not None:
            return fail(model, update, Refusal.NO_CONSENT, too_late, now)
        return (replace(model, update=update), effects) if effects else _go_on(model, update, now)
    update = with_clock(update, now)
    problem = overdue(update, now)
    if problem:
        return fail(model, update, Refusal.TIMED_OUT, problem, now)
    return replace(model, update=update), [*deadlines(update), *trial_looks(update, now)]


# ----------------------------------------------------------------------------------------------------------------------


def _each_model(
    state: DeviceState,
    change: Callable[[ModelName, ModelState], tuple[ModelState, list[Effect]]],
    *,
    collect: bool = False,
) -> Result:
    models: dict[ModelName, ModelState] = {}
    effects: list[Effect] = []
    for name in sorted(state.models):
        models[name], more = change(name, state.models[name])
        effects += more
    return _with_models(state, models, effects, collect=collect)


def _with_models(
    state: DeviceState, models: Mapping[ModelName, ModelState], effects: list[Effect], *, collect: bool
) -> Result:
    before, state = _resting(state), replace(state, models=models)
    if collect or _resting(state) != before:
        effects.append(_collect(state))
    return state, tuple(effects)


def _refuse(assignment: Assignment, refusal: Refusal, detail: str) -> Report:
    return Report(AssignmentRefused(refusal=refusal, counter=assignment.counter, detail=detail))
