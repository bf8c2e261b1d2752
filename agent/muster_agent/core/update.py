"""The update machine: every transition of a device's models stands here.

                       AssignmentArrived (device, counter, expiry and target fit)
                                  │
          ┌───────────────────────┼──────────────────────────┐
     new release              in standby                already active
          ▼                       │                          │
      MANIFEST ─▶ FILES ─▶ TESTING ◀┘                         │ (watched: a held-back control)
          │         │         │ golden cases pass             ▼
          │         │         ├──────────── switch ──▶ PROBATION ─▶ committed
          ▼         ▼         ▼                          │
        failed: what served before goes on serving       └─▶ rolled back to standby, no download

`advance(state, event, now) -> (state, effects)`. The caller saves the state and the `Report`s in one transaction, then
carries out the rest; each effect may be repeated, because after power loss `PowerCameBack` issues it again.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import assert_never

from muster_agent.core.health import Health, judge
from muster_agent.core.state import DeviceState, ModelState, Phase, Settled, Slots, Update
from muster_agent.core.trust import Target
from muster_shared.assignment import Assignment, ModelAssignment, Watch
from muster_shared.bundle import Manifest, Slo, target_path
from muster_shared.ids import ModelName, Sha256
from muster_shared.messages import (
    AssignmentRefused,
    EventBody,
    FaultSeen,
    Hardware,
    OutcomeReported,
    Refusal,
    ReleaseRef,
    Step,
    StepReached,
    WindowReport,
)
from muster_shared.variants import choose

WINDOW_SLACK_S = 0.1  # A wake-up may come a little early by the other clock.
BOOTS_IN_PROBATION_MAX = 3  # Two unlucky power cuts are forgiven, a release that takes the device down is not.


@dataclass(frozen=True)
class AssignmentArrived:
    """An assignment whose signature holds, with its digest and the targets that TUF vouches for now."""

    assignment: Assignment
    digest: Sha256
    targets: Mapping[str, Target]


@dataclass(frozen=True)
class ManifestReady:
    """The manifest of a release is on disk and hashes to what was assigned."""

    bundle: Sha256
    manifest: Manifest
    hardware: Hardware


@dataclass(frozen=True)
class FilesReady:
    """All files of the chosen variant are on disk, durable and verified."""

    bundle: Sha256
    bytes_fetched: int


@dataclass(frozen=True)
class FetchFailed:
    bundle: Sha256
    refusal: Refusal
    detail: str


@dataclass(frozen=True)
class SelfTestDone:
    """The golden cases ran on the engine that will serve, and it is warm. `refusal` is None when they passed."""

    bundle: Sha256
    refusal: Refusal | None
    detail: str


@dataclass(frozen=True)
class WindowMeasured:
    bundle: Sha256
    window: WindowReport
    slo: Slo


@dataclass(frozen=True)
class ServeFailed:
    """A slot that should serve does not load."""

    bundle: Sha256
    detail: str


@dataclass(frozen=True)
class PowerCameBack:
    """The agent starts. `broken`: slots whose files are not what they were."""

    broken: frozenset[Sha256]


@dataclass(frozen=True)
class TimeCame:
    """A wake-up; harmless at any moment."""


Event = (
    AssignmentArrived
    | ManifestReady
    | FilesReady
    | FetchFailed
    | SelfTestDone
    | WindowMeasured
    | ServeFailed
    | PowerCameBack
    | TimeCame
)


@dataclass(frozen=True)
class FetchManifest:
    release: ReleaseRef


@dataclass(frozen=True)
class FetchFiles:
    release: ReleaseRef


@dataclass(frozen=True)
class StopFetching:
    bundle: Sha256


@dataclass(frozen=True)
class SelfTest:
    """Verify the files, load, run the golden cases, warm up; answered by `SelfTestDone`."""

    release: ReleaseRef


@dataclass(frozen=True)
class Serve:
    """Let `release` take the model's traffic: loaded already after a self-test, to be loaded after a start."""

    release: ReleaseRef


@dataclass(frozen=True)
class Retire:
    model: ModelName


@dataclass(frozen=True)
class OpenWindow:
    """Start counting what `release` serves."""

    release: ReleaseRef


@dataclass(frozen=True)
class Measure:
    """Read the window; answered by `WindowMeasured`."""

    release: ReleaseRef


@dataclass(frozen=True)
class Report:
    body: EventBody


@dataclass(frozen=True)
class WakeAt:
    at: float


@dataclass(frozen=True)
class Collect:
    """Delete every stored file that no release of `keep` needs."""

    keep: frozenset[Sha256]


Effect = (
    FetchManifest
    | FetchFiles
    | StopFetching
    | SelfTest
    | Serve
    | Retire
    | OpenWindow
    | Measure
    | Report
    | WakeAt
    | Collect
)

Result = tuple[DeviceState, tuple[Effect, ...]]


def advance(state: DeviceState, event: Event, now: float) -> Result:
    """Return the state after `event` at `now` (Unix seconds), and what to do about it."""
    match event:
        case AssignmentArrived():
            return _assignment(state, event, now)
        case PowerCameBack(broken):
            return _each_model(state, lambda name, model: _power_came_back(name, model, broken, now), collect=True)
        case TimeCame():
            return _each_model(state, lambda _, model: _time_came(model, now))
        case ServeFailed(bundle, detail):
            return _each_model(state, lambda _, model: _serve_failed(model, bundle, detail, now), collect=True)
        case ManifestReady() | FilesReady() | FetchFailed() | SelfTestDone() | WindowMeasured():
            for name in sorted(state.models):
                model = state.models[name]
                if model.update is not None and model.update.release.bundle_sha256 == event.bundle:
                    return _update(state, name, model, model.update, event, now)
            return state, ()  # It was called off meanwhile.
        case _:
            assert_never(event)


def kept(state: DeviceState) -> frozenset[Sha256]:
    """Return the bundles whose files must stay: both slots and the update of each model."""
    return frozenset(
        release.bundle_sha256
        for model in state.models.values()
        for release in (model.slots.active, model.slots.standby, model.update.release if model.update else None)
        if release is not None
    )


def _assignment(state: DeviceState, event: AssignmentArrived, now: float) -> Result:
    assignment = event.assignment
    if (assignment.fleet, assignment.device) != (state.fleet, state.device):
        return state, (
            _refuse(assignment, Refusal.OTHER_DEVICE, f"it is for {assignment.device} of {assignment.fleet}"),
        )
    if assignment.counter == state.counter and event.digest == state.assignment:
        return state, ()  # Retained topics say the same thing at every connect.
    if assignment.counter <= state.counter:
        return state, (
            _refuse(assignment, Refusal.REPLAYED, f"counter {assignment.counter}, already at {state.counter}"),
        )
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
    return state, (*effects, Collect(kept(state)))


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
    effects: list[Effect] = []
    if update is None and _is_settled(model, release, watch):
        return model, []  # It was judged, perhaps rolled back; this assignment is for another model's sake.
    if update is not None:
        if update.release.bundle_sha256 == release.bundle_sha256 and update.watch == watch:
            return model, []
        called_off = update.release.bundle_sha256 != release.bundle_sha256
        if called_off and update.phase is not Phase.PROBATION:
            effects.append(StopFetching(update.release.bundle_sha256))
            effects.append(_step(update, Step.CANCELLED, now))
    fresh = Update(
        release=release,
        watch=watch,
        phase=Phase.MANIFEST,
        began_at=now,
        deadline_at=None if watch is None else now + watch.deadline_s,
    )
    active = model.slots.active
    if active is not None and active.bundle_sha256 == release.bundle_sha256:
        slots = replace(model.slots, active=release)
        if watch is None:
            if update is not None:
                effects.append(_step(fresh, Step.COMMITTED, now))
            return replace(model, slots=slots, update=None, last_error=None), effects
        sham = update is None or update.sham or update.release.bundle_sha256 != release.bundle_sha256
        fresh = replace(fresh, phase=Phase.PROBATION, sham=sham, window_from=now)
        effects += [_step(fresh, Step.ACCEPTED, now), OpenWindow(release), WakeAt(now + watch.window_s)]
        return replace(model, slots=slots, update=fresh), effects
    effects.append(_step(fresh, Step.ACCEPTED, now))
    if fresh.deadline_at is not None:
        effects.append(WakeAt(fresh.deadline_at))
    if model.slots.holds(release.bundle_sha256) is not None:
        fresh = replace(fresh, phase=Phase.TESTING)
        effects.append(SelfTest(release))
    else:
        effects.append(FetchManifest(release))
    return replace(model, update=fresh), effects


def _update(
    state: DeviceState,
    name: ModelName,
    model: ModelState,
    update: Update,
    event: ManifestReady | FilesReady | FetchFailed | SelfTestDone | WindowMeasured,
    now: float,
) -> Result:
    effects: list[Effect]
    match event:
        case ManifestReady(_, manifest, hardware):
            if update.phase is not Phase.MANIFEST:
                return state, ()
            refusal, detail = _manifest_problem(manifest, update.release, hardware)
            if refusal is not None:
                model, effects = _fail(model, update, refusal, detail, now)
            else:
                update = replace(update, phase=Phase.FILES)
                model = replace(model, update=update)
                effects = [_step(update, Step.FETCHING, now), FetchFiles(update.release)]
        case FilesReady(_, bytes_fetched):
            if update.phase is not Phase.FILES:
                return state, ()
            update = replace(update, phase=Phase.TESTING, bytes_fetched=bytes_fetched)
            model = replace(model, update=update)
            effects = [_step(update, Step.TESTING, now), SelfTest(update.release)]
        case FetchFailed(_, refusal, detail):
            if update.phase not in (Phase.MANIFEST, Phase.FILES):
                return state, ()
            model, effects = _fail(model, update, refusal, detail, now)
        case SelfTestDone(_, failed, detail):
            if update.phase is not Phase.TESTING:
                return state, ()
            if failed is not None:
                model, effects = _fail(model, update, failed, detail, now)
            else:
                model, effects = _switch(model, update, now)
        case WindowMeasured(_, window, slo):
            if update.phase is not Phase.PROBATION or update.watch is None:
                return state, ()
            model, effects = _window_measured(model, update, window, slo, now)
        case _:
            assert_never(event)
    state = replace(state, models={**state.models, name: model})
    if model.update is None:
        effects.append(Collect(kept(state)))
    return state, tuple(effects)


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


def _switch(model: ModelState, update: Update, now: float) -> tuple[ModelState, list[Effect]]:
    previous, release, watch = model.slots.active, update.release, update.watch
    standby = previous
    if previous is not None and previous.bundle_sha256 == release.bundle_sha256:
        standby = model.slots.standby  # It took over meanwhile, because the slot that served was lost.
    slots = Slots(active=release, standby=standby)
    back = previous is not None and release.release < previous.release
    effects: list[Effect] = [_step(update, Step.ROLLED_BACK if back else Step.SWITCHED, now), Serve(release)]
    if watch is None:
        effects.append(_step(update, Step.COMMITTED, now))
        return replace(model, slots=slots, update=None, last_error=None), effects
    update = replace(update, phase=Phase.PROBATION, window_from=now)
    effects += [OpenWindow(release), WakeAt(now + watch.window_s)]
    return replace(model, slots=slots, update=update, last_error=None), effects


def _window_measured(
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
            return _turn_back(model, update, judgement.reason, now, window)
        case Health.TOO_LITTLE if window.seconds < watch.window_max_s - WINDOW_SLACK_S:
            return model, [WakeAt(now + min(max(watch.window_s / 2, 0.5), watch.window_max_s - window.seconds))]
        case Health.TOO_LITTLE:
            reason = f"no traffic to judge by ({judgement.reason}); the golden cases passed"
        case Health.GOOD:
            reason = judgement.reason
        case _:
            assert_never(judgement.health)
    effects = _outcome(update, True, reason, window)
    if not update.sham:
        effects.append(_step(update, Step.COMMITTED, now))
    return replace(model, update=None, settled=_settled(update, good=True)), effects


def _turn_back(
    model: ModelState, update: Update, reason: str, now: float, window: WindowReport | None = None
) -> tuple[ModelState, list[Effect]]:
    """End a probation badly: back to standby where there is one. A control has nothing newer to leave."""
    effects = _outcome(update, False, reason, window)
    settled = _settled(update, good=False)
    standby = model.slots.standby
    if update.sham or standby is None:
        return replace(model, update=None, settled=settled, last_error=reason), effects
    effects += [_step(update, Step.ROLLED_BACK, now, detail=reason), Serve(standby)]
    return ModelState(slots=Slots(active=standby), settled=settled, last_error=reason), effects


def _fail(
    model: ModelState, update: Update, refusal: Refusal, detail: str, now: float
) -> tuple[ModelState, list[Effect]]:
    effects: list[Effect] = [
        StopFetching(update.release.bundle_sha256),
        _step(update, Step.FAILED, now, refusal, detail),
        *_outcome(update, False, f"{refusal.value}: {detail}"),
    ]
    settled = _settled(update, good=False)
    return replace(model, update=None, settled=settled, last_error=f"{refusal.value}: {detail}"), effects


def _time_came(model: ModelState, now: float) -> tuple[ModelState, list[Effect]]:
    update = model.update
    if update is None:
        return model, []
    if update.phase is Phase.PROBATION:
        if update.watch is None or update.window_from is None:
            return model, []
        window_from = min(update.window_from, now)  # A clock that was set back must not hold the window open for ever.
        if window_from != update.window_from:
            model = replace(model, update=replace(update, window_from=window_from))
        if now >= window_from + update.watch.window_s:
            return model, [Measure(update.release)]
        return model, [WakeAt(window_from + update.watch.window_s)]
    if update.deadline_at is not None and update.watch is not None:
        # A clock that was set back must not put the deadline off.
        update = replace(update, deadline_at=min(update.deadline_at, now + update.watch.deadline_s))
        model = replace(model, update=update)
    if update.deadline_at is not None and now >= update.deadline_at:
        return _fail(model, update, Refusal.TIMED_OUT, f"still {update.phase.value} at the deadline", now)
    return model, [] if update.deadline_at is None else [WakeAt(update.deadline_at)]


def _serve_failed(model: ModelState, bundle: Sha256, detail: str, now: float) -> tuple[ModelState, list[Effect]]:
    active = model.slots.active
    if active is None or active.bundle_sha256 != bundle:
        return model, []
    return _slot_lost(active.model, model, f"{active.model} {active.version} does not load: {detail}", now)


def _power_came_back(
    name: ModelName, model: ModelState, broken: frozenset[Sha256], now: float
) -> tuple[ModelState, list[Effect]]:
    slots, update = model.slots, model.update
    if slots.standby is not None and slots.standby.bundle_sha256 in broken:
        slots = replace(slots, standby=None)
        model = replace(model, slots=slots)
    if slots.active is not None and slots.active.bundle_sha256 in broken:
        return _slot_lost(name, model, f"the files of {name} {slots.active.version} are damaged", now)
    if update is not None and update.phase is Phase.PROBATION and update.boots + 1 >= BOOTS_IN_PROBATION_MAX:
        reason = f"the agent started {update.boots + 1} times during probation"
        model, effects = _turn_back(model, update, reason, now)
        return model, effects if effects[-1:] and isinstance(effects[-1], Serve) else [*effects, *_serve(model)]
    effects = _serve(model)
    if update is None:
        return model, effects
    match update.phase:
        case Phase.MANIFEST:
            effects.append(FetchManifest(update.release))
        case Phase.FILES:
            effects.append(FetchFiles(update.release))
        case Phase.TESTING:
            effects.append(SelfTest(update.release))
        case Phase.PROBATION:
            update = replace(update, boots=update.boots + 1, window_from=now)
            effects += [OpenWindow(update.release), WakeAt(now + (update.watch.window_s if update.watch else 0.0))]
        case _:
            assert_never(update.phase)
    if update.phase is not Phase.PROBATION and update.deadline_at is not None:
        effects.append(WakeAt(update.deadline_at))
    return replace(model, update=update), effects


def _slot_lost(name: ModelName, model: ModelState, detail: str, now: float) -> tuple[ModelState, list[Effect]]:
    """The active slot cannot serve: standby takes over, or the release is fetched again."""
    effects: list[Effect] = [Report(FaultSeen(model=name, detail=detail))]
    lost, update, settled = model.slots.active, model.update, model.settled
    assert lost is not None
    if update is not None and update.phase is Phase.PROBATION:
        effects += _outcome(update, False, detail)
        settled = _settled(update, good=False)
        update = None
    standby = model.slots.standby
    if standby is not None:
        effects += [Serve(standby)]
        model = ModelState(slots=Slots(active=standby), update=update, settled=settled, last_error=detail)
    else:
        effects += [Retire(name)]
        model = ModelState(slots=Slots(), update=update, settled=settled, last_error=detail)
        if update is None:
            model = replace(model, update=Update(lost, None, Phase.MANIFEST, began_at=now, deadline_at=None))
    if model.update is not None:
        match model.update.phase:
            case Phase.FILES:
                effects.append(FetchFiles(model.update.release))
            case Phase.TESTING:
                effects.append(SelfTest(model.update.release))
            case Phase.MANIFEST | Phase.PROBATION:
                effects.append(FetchManifest(model.update.release))
            case _:
                assert_never(model.update.phase)
    return model, effects


def _serve(model: ModelState) -> list[Effect]:
    return [] if model.slots.active is None else [Serve(model.slots.active)]


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
    state = replace(state, models=models)
    if collect:
        effects.append(Collect(kept(state)))
    return state, tuple(effects)


def _settled(update: Update, *, good: bool) -> Settled | None:
    watch = update.watch
    return None if watch is None else Settled(update.release.bundle_sha256, watch.rollout, watch.wave, good)


def _is_settled(model: ModelState, release: ReleaseRef, watch: Watch | None) -> bool:
    """Return whether `watch` over `release` had its outcome, and what followed from it still stands."""
    settled, active = model.settled, model.slots.active
    if settled is None or watch is None:
        return False
    if (settled.bundle, settled.rollout, settled.wave) != (release.bundle_sha256, watch.rollout, watch.wave):
        return False
    return not settled.good or (active is not None and active.bundle_sha256 == release.bundle_sha256)


def _refuse(assignment: Assignment, refusal: Refusal, detail: str) -> Report:
    return Report(AssignmentRefused(refusal=refusal, counter=assignment.counter, detail=detail))


def _step(update: Update, step: Step, now: float, refusal: Refusal | None = None, detail: str = "") -> Report:
    return Report(
        StepReached(
            release=update.release,
            step=step,
            rollout=None if update.watch is None else update.watch.rollout,
            bytes_fetched=update.bytes_fetched,
            seconds=max(0.0, now - update.began_at),
            refusal=refusal,
            detail=detail,
        )
    )


def _outcome(update: Update, good: bool, reason: str, window: WindowReport | None = None) -> list[Effect]:
    """The bit for the gate, if someone watches."""
    if update.watch is None:
        return []
    return [
        Report(
            OutcomeReported(
                release=update.release,
                rollout=update.watch.rollout,
                wave=update.watch.wave,
                good=good,
                reason=reason,
                window=window,
            )
        )
    ]
