"""The update machine: what each event does, and what no history of events can do."""

from collections import Counter, deque
from dataclasses import replace as changed

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule
from msgspec.structs import replace

from harness.updates import (
    BAD,
    DEVICE,
    GOOD,
    HARDWARE,
    MODELS,
    NOW,
    R1,
    R2,
    R3,
    SILENT,
    WATCH,
    assign,
    failures,
    faults,
    fresh,
    in_probation,
    in_testing,
    manifest,
    outcomes,
    refusals,
    release,
    run_update,
    serving,
    slots,
    steps,
    tell,
)
from muster_agent.core.events import (
    AskConsent,
    AssignmentArrived,
    BeforeMeasured,
    BeginTrial,
    ClockRead,
    Collect,
    ConsentDeferred,
    ConsentGiven,
    Effect,
    Event,
    FetchFailed,
    FetchFiles,
    FetchManifest,
    FilesReady,
    ManifestReady,
    Measure,
    OpenWindow,
    PowerCameBack,
    ReadClock,
    ReadTrial,
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
    WakeAt,
    WindowMeasured,
)
from muster_agent.core.recovery import BOOTS_MAX
from muster_agent.core.state import ModelState, Phase, Slots, Stage
from muster_agent.core.trial import TrialReading
from muster_agent.core.trust import Target
from muster_agent.core.update import FORMER_KEYS, advance, kept
from muster_shared.assignment import COUNTER_MAX, Activation, MaintenanceWindow, Trial, Watch
from muster_shared.bundle import HardwareMatch, Slo, digest, target_path
from muster_shared.ids import DeviceId, FleetId, ModelName, RolloutId, Sha256
from muster_shared.messages import OutcomeReported, Refusal, ReleaseRef, Step, WindowReport

# -- assignments -------------------------------------------------------------------------------------------------------


def test_an_assignment_is_obeyed_once_however_often_it_is_repeated() -> None:
    state, effects = tell(fresh(), assign(1, R1))

    again, nothing = tell(state, assign(1, R1))

    assert FetchManifest(R1) in effects
    assert again is state
    assert nothing == ()


def test_a_replayed_counter_is_refused_and_changes_nothing() -> None:
    state, _ = tell(fresh(), assign(5, R1))

    for counter in (4, 5):
        after, effects = tell(state, assign(counter, R2))

        assert after is state
        assert refusals(effects) == [Refusal.REPLAYED]


def test_a_counter_is_forgotten_once_none_of_the_keys_of_then_is_in_force() -> None:
    state, _ = tell(fresh(), assign(COUNTER_MAX, R1, keys=("stolen",)))

    state, effects = tell(state, assign(2, R2, keys=("new",)))

    assert refusals(effects) == []
    assert state.counter == 2


@pytest.mark.parametrize("keys", [("old",), ("old", "new"), ()], ids=["the same", "overlapping", "unknown"])
def test_a_counter_is_kept_under(keys: tuple[str, ...]) -> None:
    state, _ = tell(fresh(), assign(9, R1, keys=("old",)))

    after, effects = tell(state, assign(9, R2, keys=keys))

    assert after is state
    assert refusals(effects) == [Refusal.REPLAYED]


def test_a_counter_that_was_obeyed_while_keys_overlapped_is_kept_when_the_old_one_goes() -> None:
    state, _ = tell(fresh(), assign(9, R1, keys=("old",)))
    state, _ = tell(state, assign(10, R2, keys=("new", "old")))

    _, effects = tell(state, assign(10, R1, keys=("new",)))

    assert refusals(effects) == [Refusal.REPLAYED]


def test_a_key_that_comes_back_brings_its_counter_back() -> None:
    state, _ = tell(fresh(), assign(9, R1, keys=("first",)))
    state, _ = tell(state, assign(1, R2, keys=("second",)))

    _, replayed = tell(state, assign(9, R1, keys=("first",)))
    _, obeyed = tell(state, assign(10, R1, keys=("first",)))

    assert refusals(replayed) == [Refusal.REPLAYED]
    assert refusals(obeyed) == []


def test_a_state_without_keys_keeps_its_counter_and_learns_them_from_a_repetition() -> None:
    state, _ = tell(fresh(), assign(9, R1, keys=()))

    _, kept_on = tell(state, assign(2, R2, keys=("new",)))
    learned, nothing = tell(state, assign(9, R1, keys=("old",)))
    _, obeyed = tell(learned, assign(2, R2, keys=("new",)))

    assert refusals(kept_on) == [Refusal.REPLAYED]
    assert nothing == ()
    assert refusals(obeyed) == []


def test_a_repetition_while_keys_overlap_does_not_hold_a_raised_counter_up_under_the_new_key() -> None:
    state, _ = tell(fresh(), assign(COUNTER_MAX, R1, keys=("stolen",)))

    state, _ = tell(state, assign(COUNTER_MAX, R1, keys=("new", "stolen")))
    _, effects = tell(state, assign(2, R2, keys=("new",)))

    assert refusals(effects) == []


def test_of_former_keys_the_newest_are_remembered() -> None:
    state = fresh()

    for number in range(FORMER_KEYS + 9):
        state, _ = tell(state, assign(number + 1, R1, keys=(f"k{number}",)))

    assert list(state.keys) == [f"k{number}" for number in range(8, FORMER_KEYS + 9)]


@given(
    story=st.lists(
        st.tuples(st.sets(st.sampled_from("abc"), min_size=1), st.sampled_from("abc"), st.integers(1, 4)), max_size=30
    )
)
def test_no_assignment_is_obeyed_twice_whatever_keys_come_and_go(story: list[tuple[set[str], str, int]]) -> None:
    """An assignment is known by its signer and its counter; it verifies while its signer is in force."""
    state, obeyed = fresh(), set[tuple[str, int]]()
    for keys, signer, counter in story:
        if signer not in keys:
            continue
        event = changed(assign(counter, R1, keys=tuple(sorted(keys))), digest=digest(f"{signer} {counter}".encode()))

        state, effects = tell(state, event)

        if effects and not refusals(effects):
            assert (signer, counter) not in obeyed
            obeyed.add((signer, counter))


def test_an_unsigned_release_is_refused_and_changes_nothing() -> None:
    state, effects = tell(fresh(), assign(1, R1, signed=()))

    assert state == fresh()
    assert refusals(effects) == [Refusal.NOT_A_TARGET]


def test_a_release_that_is_signed_with_another_digest_is_refused() -> None:
    event = assign(1, R1)
    targets = {target_path(R1.model, R1.version): Target(R2.bundle_sha256, R1.bundle_length)}

    state, effects = tell(fresh(), changed(event, targets=targets))

    assert state == fresh()
    assert refusals(effects) == [Refusal.NOT_A_TARGET]


def test_one_unsigned_release_spoils_the_whole_assignment() -> None:
    other = release(1, MODELS[1])

    state, effects = tell(fresh(), assign(1, R1, other, signed=(R1,)))

    assert state == fresh()
    assert refusals(effects) == [Refusal.NOT_A_TARGET]


def test_an_assignment_for_another_device_is_refused_before_its_counter_counts() -> None:
    state, effects = tell(fresh(), assign(9, R1, device=DeviceId("crane-8")))

    assert state.counter == 0
    assert refusals(effects) == [Refusal.OTHER_DEVICE]


def test_an_assignment_for_another_fleet_is_refused() -> None:
    _, effects = tell(fresh(), assign(9, R1, fleet=FleetId("airport")))

    assert refusals(effects) == [Refusal.OTHER_DEVICE]


def test_an_expired_assignment_is_refused() -> None:
    state, effects = tell(fresh(), assign(1, R1, expires_at=NOW))

    assert state == fresh()
    assert refusals(effects) == [Refusal.EXPIRED]


def test_a_model_that_is_not_assigned_any_more_is_retired() -> None:
    state, _ = tell(serving(R1), assign(2, release(1, MODELS[1])))

    assert list(state.models) == [MODELS[1]]


def test_retiring_a_model_stops_its_fetch_and_lets_its_files_go() -> None:
    state, _ = tell(fresh(), assign(1, R1))

    state, effects = tell(state, assign(2))

    assert StopFetching(R1.bundle_sha256) in effects
    assert Retire(R1.model) in effects
    assert effects[-1] == Collect(frozenset())


# -- from assignment to commit -----------------------------------------------------------------------------------------


def test_a_release_is_fetched_tested_switched_and_committed_in_this_order() -> None:
    state, effects = tell(serving(R1), assign(2, R2))
    assert steps(effects) == [Step.ACCEPTED]

    state, effects = tell(state, ManifestReady(R2.bundle_sha256, manifest(R2), HARDWARE))
    assert effects[-1] == FetchFiles(R2)
    state, effects = tell(state, FilesReady(R2.bundle_sha256, 5000))
    assert effects[-1] == SelfTest(R2)
    assert slots(state) == Slots(active=R1)

    state, effects = tell(state, SelfTestDone(R2.bundle_sha256, None, ""))
    assert steps(effects) == [Step.SWITCHED, Step.COMMITTED]
    assert Serve(R2) in effects
    assert slots(state) == Slots(active=R2, standby=R1)


def test_files_of_both_slots_are_kept_after_a_switch() -> None:
    state = serving(R2, standby=R1)

    state, effects = run_update(state, R3)

    assert Collect(frozenset({R3.bundle_sha256, R2.bundle_sha256})) in effects
    assert slots(state) == Slots(active=R3, standby=R2)


def test_going_back_to_standby_needs_no_download() -> None:
    state, effects = tell(serving(R2, standby=R1), assign(2, R1))

    assert SelfTest(R1) in effects
    assert not any(isinstance(effect, FetchManifest | FetchFiles) for effect in effects)

    state, effects = tell(state, SelfTestDone(R1.bundle_sha256, None, ""))

    assert Step.ROLLED_BACK in steps(effects)
    assert slots(state) == Slots(active=R1, standby=R2)


def test_a_manifest_of_another_release_is_refused() -> None:
    state, _ = tell(serving(R1), assign(2, R2))

    state, effects = tell(state, ManifestReady(R2.bundle_sha256, manifest(R3), HARDWARE))

    assert failures(effects) == [Refusal.MANIFEST_INVALID]
    assert slots(state) == Slots(active=R1)


def test_a_release_for_other_hardware_is_refused() -> None:
    state, _ = tell(serving(R1), assign(2, R2))
    large = manifest(R2, HardwareMatch(memory_mb_min=2000))

    state, effects = tell(state, ManifestReady(R2.bundle_sha256, large, HARDWARE))

    assert failures(effects) == [Refusal.WRONG_HARDWARE]
    assert slots(state) == Slots(active=R1)


def test_a_failed_self_test_leaves_what_served_and_counts_as_bad() -> None:
    state = in_testing(R2, watch=WATCH)

    state, effects = tell(state, SelfTestDone(R2.bundle_sha256, Refusal.SELF_TEST_FAILED, "case 3 is wrong"))

    assert failures(effects) == [Refusal.SELF_TEST_FAILED]
    assert [outcome.good for outcome in outcomes(effects)] == [False]
    assert slots(state) == Slots(active=R1)
    assert not any(isinstance(effect, Serve | Retire) for effect in effects)


def test_an_answer_about_a_release_that_was_called_off_is_ignored() -> None:
    state, _ = tell(in_testing(R2), assign(3, R3))

    after, effects = tell(state, SelfTestDone(R2.bundle_sha256, None, ""))

    assert after is state
    assert effects == ()


def test_an_update_that_is_not_done_at_its_deadline_is_given_up() -> None:
    state, _ = tell(serving(R1), assign(2, R2, watch=WATCH))

    early, _ = tell(state, TimeCame(), NOW + WATCH.deadline_s - 1)
    late, effects = tell(state, TimeCame(), NOW + WATCH.deadline_s)

    assert early == state
    assert failures(effects) == [Refusal.TIMED_OUT]
    assert late.models[R1.model].update is None


# -- probation ---------------------------------------------------------------------------------------------------------


def test_a_good_window_commits_and_reports_the_bit() -> None:
    state = in_probation(R2)

    state, effects = tell(state, WindowMeasured(R2.bundle_sha256, GOOD, Slo()), NOW + 10)

    assert [outcome.good for outcome in outcomes(effects)] == [True]
    assert steps(effects) == [Step.COMMITTED]
    assert slots(state) == Slots(active=R2, standby=R1)


def test_a_bad_window_rolls_back_without_download() -> None:
    state = in_probation(R2)

    state, effects = tell(state, WindowMeasured(R2.bundle_sha256, BAD, Slo()), NOW + 10)

    assert [outcome.good for outcome in outcomes(effects)] == [False]
    assert steps(effects) == [Step.ROLLED_BACK]
    assert Serve(R1) in effects
    assert slots(state) == Slots(active=R1)


def test_a_silent_window_waits_and_is_then_judged_by_the_golden_cases() -> None:
    state = in_probation(R2)

    state, waiting = tell(state, WindowMeasured(R2.bundle_sha256, SILENT, Slo()), NOW + 10)
    still_silent = WindowReport(seconds=WATCH.window_max_s)
    _, done = tell(state, WindowMeasured(R2.bundle_sha256, still_silent, Slo()), NOW + WATCH.window_max_s)

    assert outcomes(waiting) == []
    assert any(isinstance(effect, WakeAt) for effect in waiting)
    assert [outcome.good for outcome in outcomes(done)] == [True]


def test_a_held_back_control_is_measured_and_never_rolled_back() -> None:
    state, effects = tell(serving(R1, standby=R3), assign(2, R1, watch=WATCH))
    assert OpenWindow(R1) in effects

    state, effects = tell(state, WindowMeasured(R1.bundle_sha256, BAD, Slo()), NOW + 10)

    assert [outcome.good for outcome in outcomes(effects)] == [False]
    assert not any(isinstance(effect, Serve) for effect in effects)
    assert slots(state) == Slots(active=R1, standby=R3)


def test_a_judged_watch_that_is_assigned_again_for_another_models_sake_starts_nothing() -> None:
    other = release(1, MODELS[1])
    state, _ = tell(in_probation(R2), WindowMeasured(R2.bundle_sha256, BAD, Slo()))

    state, effects = tell(state, assign(state.counter + 1, R2, other, watch=WATCH))

    assert slots(state).active == R1
    assert state.models[R2.model].update is None
    assert [effect for effect in effects if isinstance(effect, FetchManifest)] == [FetchManifest(other)]


def test_a_failed_release_is_not_fetched_again_by_the_same_watch() -> None:
    state = in_testing(R2, WATCH)
    state, _ = tell(state, SelfTestDone(R2.bundle_sha256, Refusal.SELF_TEST_FAILED, "off by one"))

    state, effects = tell(state, assign(state.counter + 1, R2, watch=WATCH))

    assert state.models[R2.model].update is None
    assert outcomes(effects) == []


def test_a_control_is_judged_once_a_watch() -> None:
    state, _ = tell(serving(R1), assign(2, R1, watch=WATCH))
    state, effects = tell(state, WindowMeasured(R1.bundle_sha256, GOOD, Slo()))
    assert [outcome.good for outcome in outcomes(effects)] == [True]

    state, effects = tell(state, assign(3, R1, watch=WATCH))

    assert outcomes(effects) == []
    assert state.models[R1.model].update is None


def test_the_window_is_measured_when_it_has_passed_and_not_before() -> None:
    state = in_probation(R2)

    _, early = tell(state, TimeCame(), NOW + 9)
    _, late = tell(state, TimeCame(), NOW + 10)

    assert early == (WakeAt(NOW + 10),)
    assert late == (Measure(R2),)


def test_a_clock_that_is_set_forward_does_not_close_the_window_early() -> None:
    state = in_probation(R2)
    jumped = NOW + 86_400.0

    state, effects = tell(state, TimeCame(), jumped)
    assert effects == (Measure(R2),)
    state, effects = tell(state, WindowMeasured(R2.bundle_sha256, WindowReport(seconds=2.0), Slo()), jumped)

    assert outcomes(effects) == []
    assert WakeAt(jumped + WATCH.window_s - 2.0) in effects


def test_a_clock_that_is_set_back_does_not_hold_the_window_open() -> None:
    state = in_probation(R2)

    state, effects = tell(state, TimeCame(), NOW - 5000)

    assert effects == (WakeAt(NOW - 5000 + WATCH.window_s),)


# -- power -------------------------------------------------------------------------------------------------------------


def test_power_that_fails_anywhere_leaves_the_previous_release_serving() -> None:
    begun, _ = tell(serving(R1), assign(2, R2))
    with_manifest, _ = tell(begun, ManifestReady(R2.bundle_sha256, manifest(R2), HARDWARE))

    for state, next_effect in (
        (begun, FetchManifest(R2)),
        (with_manifest, FetchFiles(R2)),
        (in_testing(R2), SelfTest(R2)),
    ):
        after, effects = tell(state, PowerCameBack(frozenset()))

        assert Serve(R1) in effects
        assert next_effect in effects
        assert slots(after) == Slots(active=R1)


def test_a_release_that_takes_the_device_down_is_rolled_back() -> None:
    state = in_probation(R2)

    for _ in range(BOOTS_MAX - 1):
        state, effects = tell(state, PowerCameBack(frozenset()))
        assert Serve(R2) in effects
    state, effects = tell(state, PowerCameBack(frozenset()))

    assert Serve(R1) in effects
    assert [outcome.good for outcome in outcomes(effects)] == [False]
    assert slots(state) == Slots(active=R1)


def test_standby_takes_over_when_the_active_files_are_damaged() -> None:
    state, effects = tell(serving(R2, standby=R1), PowerCameBack(frozenset({R2.bundle_sha256})))

    assert Serve(R1) in effects
    assert faults(effects) == 1
    assert slots(state) == Slots(active=R1)


def test_a_device_without_any_whole_slot_fetches_its_release_again() -> None:
    broken = frozenset({R1.bundle_sha256, R2.bundle_sha256})

    state, effects = tell(serving(R2, standby=R1), PowerCameBack(broken))

    assert Retire(R2.model) in effects
    assert FetchManifest(R2) in effects
    assert slots(state) == Slots()


def test_standby_takes_over_when_the_active_release_does_not_load() -> None:
    state, effects = tell(serving(R2, standby=R1), ServeFailed(R2.bundle_sha256, "out of memory"))

    assert Serve(R1) in effects
    assert slots(state) == Slots(active=R1)


# -- no history can do this --------------------------------------------------------------------------------------------


ACTIVATIONS = st.builds(
    Activation,
    windows=st.sampled_from([(), (MaintenanceWindow(start_minute=120, minutes=60),)]),
    consent=st.booleans(),
    defer_s_max=st.sampled_from([0.0, 60.0, 5000.0]),
    trial=st.one_of(st.none(), st.builds(Trial, requests_min=st.just(50), required=st.booleans())),
)
TRIED = TrialReading(60.0, compared=60, answered=60)
REFUTED = TrialReading(60.0, compared=60, answered=60, disagreed=60)


class AnyHistory(RuleBasedStateMachine):
    """Events in any order, wanted or not, with power loss and clocks that jump."""

    def __init__(self) -> None:
        super().__init__()
        self.state = fresh()
        self.now = NOW
        self.proven: set[Sha256] = set()
        self.rollouts = 0
        self.attempts: Counter[tuple[RolloutId, ModelName]] = Counter()
        self.judged: Counter[tuple[RolloutId, ModelName]] = Counter()
        self.last: AssignmentArrived | None = None
        self.asked: deque[Effect] = deque(maxlen=8)
        """What nobody has answered yet."""

    def tell(self, event: Event, *, may_lose: frozenset[Sha256] = frozenset()) -> tuple[Effect, ...]:
        """Let the core decide, and hold what must be true between any two states."""
        before = self.state
        self.state, effects = advance(before, event, self.now)
        assert self.state.counter >= before.counter
        for effect in effects:
            if isinstance(effect, Report) and isinstance(effect.body, OutcomeReported):
                watched = (effect.body.rollout, effect.body.release.model)
                self.judged[watched] += 1
                assert self.judged[watched] <= self.attempts[watched]
            if isinstance(effect, Collect):
                assert kept(self.state) <= effect.keep
                assert not effect.resting & self._slots()
        for name, model in before.models.items():
            self._holds_on(name, model, effects, may_lose)
        self.asked.extend(effect for effect in effects if self._answer(effect, well=True) is not None)
        return effects

    def _slots(self) -> set[Sha256]:
        """Return what must stay runnable."""
        return {
            slot.bundle_sha256
            for model in self.state.models.values()
            for slot in (model.slots.active, model.slots.standby)
            if slot is not None
        }

    def _holds_on(
        self, name: ModelName, before: ModelState, effects: tuple[Effect, ...], may_lose: frozenset[Sha256]
    ) -> None:
        after = self.state.models.get(name)
        if after is None:
            assert Retire(name) in effects
            return
        was, active = before.slots.active, after.slots.active
        if was is not None and active is None:
            assert was.bundle_sha256 in may_lose
            standby = before.slots.standby
            assert standby is None or standby.bundle_sha256 in may_lose
            assert Retire(name) in effects
        if active is not None and (was is None or was.bundle_sha256 != active.bundle_sha256):
            served = [
                effect.release for effect in effects if isinstance(effect, Serve) and effect.release.model == name
            ]
            assert served[-1:] == [active]

    @initialize()
    def begins_with_a_release_that_serves(self) -> None:
        self.state = serving(R1)
        self.proven = {R1.bundle_sha256}

    @rule(
        numbers=st.lists(st.one_of(st.none(), st.integers(1, 4)), min_size=2, max_size=2),
        step=st.sampled_from([1, 1, 1, 3]),
        activation=st.one_of(st.none(), ACTIVATIONS),
    )
    def is_assigned(self, numbers: list[int | None], step: int, activation: Activation | None) -> None:
        wanted = [release(number, model) for number, model in zip(numbers, MODELS, strict=True) if number is not None]
        watch = None if activation is None else self._watch(activation)
        event = assign(self.state.counter + step, *wanted, watch=watch, at=self.now)
        self.last = event
        if watch is not None:
            self.attempts.update((watch.rollout, one.model) for one in wanted)
        self.tell(event)
        assert self.state.counter == event.assignment.counter
        assert sorted(self.state.models) == sorted(one.model for one in wanted)

    @rule(answers=st.lists(st.sampled_from([True, True, True, True, False]), min_size=2, max_size=10))
    def is_answered(self, answers: list[bool]) -> None:
        for well in answers:
            answer = self._answer(self.asked.pop(), well=well) if self.asked else None
            if answer is not None:
                if isinstance(answer, SelfTestDone):
                    self.proven.add(answer.bundle)
                self.tell(answer)

    @rule(again=st.booleans())
    def is_told_the_same_or_to_try_again(self, again: bool) -> None:
        wanted = () if self.last is None else self.last.assignment.models
        watch = wanted[0].watch if wanted else None
        if watch is None:
            return
        if again:
            watch = replace(watch, attempt=watch.attempt + 1)
            self.attempts.update((watch.rollout, one.release.model) for one in wanted)
        self.last = assign(self.state.counter + 1, *(one.release for one in wanted), watch=watch, at=self.now)
        self.tell(self.last)

    @rule(number=st.integers(1, 4), behind=st.integers(0, 3))
    def is_told_an_old_counter(self, number: int, behind: int) -> None:
        assume(self.state.counter - behind >= 1)
        before = self.state
        self.tell(assign(self.state.counter - behind, release(number), at=self.now))
        assert self.state == before

    @rule(number=st.integers(1, 4), fault=st.sampled_from(["unsigned", "device", "expired"]))
    def is_told_something_wrong(self, number: int, fault: str) -> None:
        before, one = self.state, release(number)
        event = assign(
            self.state.counter + 1,
            one,
            signed=() if fault == "unsigned" else None,
            device=DeviceId("crane-8") if fault == "device" else DEVICE,
            expires_at=self.now - 1 if fault == "expired" else None,
            at=self.now,
        )
        self.tell(event)
        assert self.state == before

    @rule(number=st.integers(1, 4), model=st.sampled_from(MODELS), fits=st.booleans(), current=st.booleans())
    def has_a_manifest(self, number: int, model: ModelName, fits: bool, current: bool) -> None:
        one = self._pending(model) if current else release(number, model)
        if one is None:
            return
        match = HardwareMatch() if fits else HardwareMatch(arch=("riscv64",))
        self.tell(ManifestReady(one.bundle_sha256, manifest(one, match), HARDWARE))

    @rule(model=st.sampled_from(MODELS), ready=st.booleans())
    def has_files_or_not(self, model: ModelName, ready: bool) -> None:
        one = self._pending(model)
        if one is None:
            return
        self.tell(
            FilesReady(one.bundle_sha256, 1)
            if ready
            else FetchFailed(one.bundle_sha256, Refusal.DISK_FULL, "no room is left")
        )

    @rule(number=st.integers(1, 4), model=st.sampled_from(MODELS), passed=st.booleans(), current=st.booleans())
    def has_tested(self, number: int, model: ModelName, passed: bool, current: bool) -> None:
        one = self._pending(model) if current else release(number, model)
        if one is None:
            return
        if passed:
            self.proven.add(one.bundle_sha256)
        self.tell(SelfTestDone(one.bundle_sha256, None if passed else Refusal.SELF_TEST_FAILED, ""))

    @rule(model=st.sampled_from(MODELS), weekday=st.integers(0, 6), minute=st.integers(0, 1439))
    def looks_at_the_clock(self, model: ModelName, weekday: int, minute: int) -> None:
        one = self._pending(model)
        if one is None:
            return
        self.tell(ClockRead(one.bundle_sha256, weekday, minute))

    @rule(model=st.sampled_from(MODELS), stage=st.sampled_from(Stage), retry_s=st.sampled_from([None, 0.0, 30.0, 1e9]))
    def consents_or_not(self, model: ModelName, stage: Stage, retry_s: float | None) -> None:
        one = self._pending(model)
        if one is None:
            return
        self.tell(
            ConsentGiven(one.bundle_sha256, stage)
            if retry_s is None
            else ConsentDeferred(one.bundle_sha256, stage, "busy", retry_s)
        )

    @rule(model=st.sampled_from(MODELS), reading=st.sampled_from([None, TrialReading(1.0), TRIED, REFUTED]))
    def has_been_tried(self, model: ModelName, reading: TrialReading | None) -> None:
        one = self._pending(model)
        if one is None:
            return
        bundle = one.bundle_sha256
        self.tell(TrialRefused(bundle, "other inputs") if reading is None else TrialMeasured(bundle, reading))

    @rule(model=st.sampled_from(MODELS), latency_ms=st.sampled_from([None, 1.0]))
    def knows_how_it_was_before(self, model: ModelName, latency_ms: float | None) -> None:
        one = self._pending(model)
        if one is None:
            return
        self.tell(BeforeMeasured(one.bundle_sha256, latency_ms))

    @rule(model=st.sampled_from(MODELS), window=st.sampled_from([GOOD, BAD, SILENT]))
    def has_measured(self, model: ModelName, window: WindowReport) -> None:
        one = self._pending(model)
        if one is None:
            return
        self.tell(WindowMeasured(one.bundle_sha256, window, Slo()))

    @rule(number=st.integers(1, 4), model=st.sampled_from(MODELS))
    def cannot_serve(self, number: int, model: ModelName) -> None:
        bundle = release(number, model).bundle_sha256
        self.tell(ServeFailed(bundle, "it does not load"), may_lose=frozenset({bundle}))

    @rule(broken=st.sets(st.tuples(st.integers(1, 4), st.sampled_from(MODELS)), max_size=3))
    def loses_power(self, broken: set[tuple[int, ModelName]]) -> None:
        bundles = frozenset(release(number, model).bundle_sha256 for number, model in broken)
        self.tell(PowerCameBack(bundles), may_lose=bundles)
        for model in self.state.models.values():
            for slot in (model.slots.active, model.slots.standby):
                assert slot is None or slot.bundle_sha256 not in bundles

    @rule(seconds=st.sampled_from([-100_000.0, -5.0, 0.0, 1.0, 15.0, 40.0, 5000.0]))
    def passes_time(self, seconds: float) -> None:
        self.now += seconds
        self.tell(TimeCame())

    @invariant()
    def serves_only_what_was_proven(self) -> None:
        for model in self.state.models.values():
            for slot in (model.slots.active, model.slots.standby):
                assert slot is None or slot.bundle_sha256 in self.proven

    @invariant()
    def has_two_different_slots(self) -> None:
        for name, model in self.state.models.items():
            active, standby = model.slots.active, model.slots.standby
            assert all(slot is None or slot.model == name for slot in (active, standby))
            assert active is None or standby is None or active.bundle_sha256 != standby.bundle_sha256
            assert active is not None or standby is None

    @invariant()
    def is_in_probation_only_with_what_serves(self) -> None:
        for model in self.state.models.values():
            update, active = model.update, model.slots.active
            if update is not None and update.phase is Phase.PROBATION:
                assert active is not None
                assert active.bundle_sha256 == update.release.bundle_sha256

    @invariant()
    def is_tried_only_beside_something_else(self) -> None:
        for model in self.state.models.values():
            update, active = model.update, model.slots.active
            if update is not None and update.phase is Phase.TRYING:
                assert active is not None
                assert active.bundle_sha256 != update.release.bundle_sha256

    @invariant()
    def is_put_off_only_where_it_is_asked_and_watched(self) -> None:
        for model in self.state.models.values():
            update = model.update
            if update is not None and (update.deferral is not None or update.asking is not None):
                assert update.phase in (Phase.WAITING, Phase.READY)
                assert update.watch is not None
            if update is not None and update.watch is None:
                assert update.phase in (Phase.MANIFEST, Phase.FILES, Phase.TESTING)

    def teardown(self) -> None:
        """However it came here: a device whose world answers ends everything in the end, each watch once."""
        watched = {
            (model.update.watch.rollout, name): self.judged[model.update.watch.rollout, name]
            for name, model in self.state.models.items()
            if model.update is not None and model.update.watch is not None
        }
        self._live_on()
        assert all(model.update is None for model in self.state.models.values())
        for key, before in watched.items():
            assert self.judged[key] == before + 1

    def _live_on(self) -> None:
        """Answer every question from now on, as a quiet device outside its windows that never consents does."""
        events: deque[Event] = deque([PowerCameBack(frozenset())])
        wakes: set[float] = set()
        for _ in range(2000):
            if not events:
                if all(model.update is None for model in self.state.models.values()):
                    return
                assert wakes, "it waits for nothing"
                self.now = max(self.now, min(wakes))
                wakes = {at for at in wakes if at > self.now}
                events.append(TimeCame())
            event = events.popleft()
            if isinstance(event, SelfTestDone):
                self.proven.add(event.bundle)
            for effect in self.tell(event):
                if isinstance(effect, WakeAt):
                    wakes.add(effect.at)
                elif (answer := self._answer(effect, well=False)) is not None:
                    events.append(answer)
        raise AssertionError("it never ends")

    def _answer(self, effect: Effect, *, well: bool) -> Event | None:
        match effect:
            case FetchManifest(one):
                return ManifestReady(one.bundle_sha256, manifest(one), HARDWARE)
            case FetchFiles(one):
                return FilesReady(one.bundle_sha256, 1)
            case SelfTest(one):
                return SelfTestDone(one.bundle_sha256, None, "")
            case ReadClock(one):
                return ClockRead(one.bundle_sha256, 2, 130 if well else 600)
            case AskConsent(one, stage) if well:
                return ConsentGiven(one.bundle_sha256, stage)
            case AskConsent(one, stage):
                return ConsentDeferred(one.bundle_sha256, stage, "busy", 300.0)
            case BeginTrial(one) | ReadTrial(one):
                return TrialMeasured(one.bundle_sha256, TRIED if well else TrialReading(1e6))
            case OpenWindow(one) | Measure(one):
                window = GOOD if well else WindowReport(seconds=30.0)
                return WindowMeasured(one.bundle_sha256, window, Slo())
            case _:
                return None

    def _pending(self, model: ModelName) -> ReleaseRef | None:
        update = self.state.models.get(model, ModelState()).update
        return None if update is None else update.release

    def _watch(self, activation: Activation) -> Watch:
        self.rollouts += 1
        return Watch(
            rollout=RolloutId(f"r{self.rollouts}"),
            wave=1,
            window_s=10,
            window_max_s=30,
            deadline_s=1000,
            download_s=500,
            requests_min=5,
            activation=activation,
        )


AnyHistory.TestCase.settings = settings(max_examples=200, stateful_step_count=40, deadline=None)
TestAnyHistory = AnyHistory.TestCase
