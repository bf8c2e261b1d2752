"""What stands between a proven release and the switch: windows, consent, a trial; and how long it may be put off."""

from dataclasses import replace

import pytest
from msgspec.structs import replace as changed

from harness.updates import (
    GOOD,
    HARDWARE,
    NOW,
    R1,
    R2,
    R3,
    WATCH,
    assign,
    failures,
    fresh,
    manifest,
    outcomes,
    serving,
    slots,
    steps,
    tell,
)
from muster_agent.core.activation import ANSWER_S, LOOK_S_MAX, TOLD_GAP_S, opens_in
from muster_agent.core.events import (
    AskConsent,
    BeforeMeasured,
    BeginTrial,
    ClockRead,
    Collect,
    ConsentDeferred,
    ConsentGiven,
    Effect,
    EndTrial,
    FetchManifest,
    FilesReady,
    ManifestReady,
    MeasureBefore,
    OpenWindow,
    PowerCameBack,
    ReadClock,
    ReadTrial,
    Report,
    SelfTest,
    SelfTestDone,
    Serve,
    ServeFailed,
    TimeCame,
    TrialMeasured,
    TrialRefused,
    WakeAt,
    WindowMeasured,
)
from muster_agent.core.recovery import BOOTS_MAX
from muster_agent.core.state import DeviceState, Phase, Slots, Stage
from muster_agent.core.trial import TrialReading
from muster_shared.assignment import Activation, MaintenanceWindow, Trial, Watch
from muster_shared.bundle import Slo
from muster_shared.messages import Refusal, ReleaseRef, Step, StepReached, WindowReport

NIGHT = MaintenanceWindow(start_minute=120, minutes=60)
"""02:00 to 03:00, every day."""
SUNDAY_OVER_MIDNIGHT = MaintenanceWindow(days=(6,), start_minute=1380, minutes=120)
TRIAL = Trial(requests_min=50, seconds_max=600.0)
GOOD_TRIAL = TrialReading(
    60.0, compared=60, disagreed=1, answered=60, latency_ms_p95=1.1, serving_answered=60, serving_latency_ms_p95=1.0
)
BAD_TRIAL = replace(GOOD_TRIAL, disagreed=20)
BUNDLE = R2.bundle_sha256
WEDNESDAY = 2


def watch(
    *windows: MaintenanceWindow,
    consent: bool = False,
    defer_s_max: float = 7200.0,
    trial: Trial | None = None,
    download_s: float | None = None,
    attempt: int = 1,
) -> Watch:
    activation = Activation(windows=windows, consent=consent, defer_s_max=defer_s_max, trial=trial)
    return changed(WATCH, activation=activation, download_s=download_s, attempt=attempt)


def proven(wanted: Watch, one: ReleaseRef = R2) -> tuple[DeviceState, tuple[Effect, ...]]:
    """R1 serves; `one` was fetched, and its golden cases have just passed."""
    state, _ = tell(serving(R1), assign(2, one, watch=wanted))
    if wanted.activation.consent:
        state, _ = tell(state, ConsentGiven(one.bundle_sha256, Stage.DOWNLOAD))
    state, _ = tell(state, ManifestReady(one.bundle_sha256, manifest(one), HARDWARE))
    state, _ = tell(state, FilesReady(one.bundle_sha256, 1))
    return tell(state, SelfTestDone(one.bundle_sha256, None, ""))


def phase(state: DeviceState) -> Phase | None:
    update = state.models[R1.model].update
    return None if update is None else update.phase


def deferrals(effects: tuple[Effect, ...]) -> list[StepReached]:
    bodies = [effect.body for effect in effects if isinstance(effect, Report)]
    return [body for body in bodies if isinstance(body, StepReached) and body.step is Step.DEFERRED]


def wakes(effects: tuple[Effect, ...]) -> list[float]:
    return [effect.at for effect in effects if isinstance(effect, WakeAt)]


# -- windows -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("weekday", "minute", "wait"),
    [(0, 119, 1), (0, 120, 0), (0, 179, 0), (0, 180, 23 * 60), (6, 181, 23 * 60 - 1)],
)
def test_a_window_is_open_from_its_first_minute_to_before_its_last(weekday: int, minute: int, wait: int) -> None:
    assert opens_in([NIGHT], weekday, minute) == wait


@pytest.mark.parametrize(
    ("weekday", "minute", "wait"), [(6, 1379, 1), (6, 1380, 0), (0, 0, 0), (0, 59, 0), (0, 60, 7 * 1440 - 120)]
)
def test_a_window_of_sunday_reaches_into_monday(weekday: int, minute: int, wait: int) -> None:
    assert opens_in([SUNDAY_OVER_MIDNIGHT], weekday, minute) == wait


def test_of_several_windows_the_next_one_counts_and_one_without_days_is_none() -> None:
    assert opens_in([SUNDAY_OVER_MIDNIGHT, NIGHT], WEDNESDAY, 60) == 60
    assert opens_in([changed(NIGHT, days=())], WEDNESDAY, 60) is None


def test_a_proven_release_waits_for_its_window_and_says_until_when() -> None:
    state, effects = proven(watch(NIGHT))
    assert effects == (ReadClock(R2),)

    state, effects = tell(state, ClockRead(BUNDLE, WEDNESDAY, 90))

    (told,) = deferrals(effects)
    assert told.detail == "activate: outside its maintenance windows"
    assert told.until == NOW + 30 * 60
    assert wakes(effects) == [NOW + 30 * 60]
    assert slots(state) == Slots(active=R1)


def test_within_its_window_it_switches_at_once() -> None:
    state, _ = proven(watch(NIGHT))

    state, effects = tell(state, ClockRead(BUNDLE, WEDNESDAY, 130))

    assert Serve(R2) in effects
    assert phase(state) is Phase.PROBATION


def test_the_clock_is_read_afresh_at_each_look_and_at_most_an_hour_ahead() -> None:
    state, _ = proven(watch(NIGHT, defer_s_max=86400.0))
    state, effects = tell(state, ClockRead(BUNDLE, WEDNESDAY, 600))
    assert wakes(effects) == [NOW + LOOK_S_MAX]

    state, early = tell(state, TimeCame(), NOW + LOOK_S_MAX - 1)
    state, due = tell(state, TimeCame(), NOW + LOOK_S_MAX)
    # Meanwhile the clock was put forward: it is 02:10 already.
    state, effects = tell(state, ClockRead(BUNDLE, WEDNESDAY, 130), NOW + LOOK_S_MAX)

    assert ReadClock(R2) not in early
    assert ReadClock(R2) in due
    assert SelfTest(R2) in effects


def test_the_same_reason_is_reported_once_however_often_it_looks() -> None:
    state, _ = proven(watch(NIGHT, defer_s_max=86400.0))
    told = []
    now = NOW

    for hour in range(10, 20):
        state, effects = tell(state, ClockRead(BUNDLE, WEDNESDAY, hour * 60), now)
        told += deferrals(effects)
        now += LOOK_S_MAX
        state, effects = tell(state, TimeCame(), now)
        told += deferrals(effects)

    assert len(told) == 1


def test_what_is_deferred_for_too_long_fails_for_want_of_consent() -> None:
    state, _ = proven(watch(NIGHT, defer_s_max=1800.0))
    state, effects = tell(state, ClockRead(BUNDLE, WEDNESDAY, 600))
    assert wakes(effects) == [NOW + 1800.0]

    state, effects = tell(state, TimeCame(), NOW + 1800.0)

    assert failures(effects) == [Refusal.NO_CONSENT]
    assert [outcome.good for outcome in outcomes(effects)] == [False]
    assert slots(state) == Slots(active=R1)


def test_who_may_not_defer_at_all_fails_at_the_first_later() -> None:
    state, _ = proven(watch(NIGHT, defer_s_max=0.0))

    state, effects = tell(state, ClockRead(BUNDLE, WEDNESDAY, 600))

    assert failures(effects) == [Refusal.NO_CONSENT]


def test_deadlines_stand_still_while_it_is_deferred() -> None:
    state, _ = proven(watch(NIGHT, defer_s_max=10 * WATCH.deadline_s))
    state, _ = tell(state, ClockRead(BUNDLE, WEDNESDAY, 600))
    later = NOW + 3 * WATCH.deadline_s

    state, effects = tell(state, TimeCame(), later)
    assert failures(effects) == []
    state, _ = tell(state, ClockRead(BUNDLE, WEDNESDAY, 130), later)

    update = state.models[R1.model].update
    assert update is not None
    assert update.deadline_at == later + WATCH.deadline_s
    assert update.deferral is None


def test_a_clock_that_is_set_back_puts_no_deferral_off() -> None:
    state, _ = proven(watch(NIGHT, defer_s_max=1800.0))
    state, _ = tell(state, ClockRead(BUNDLE, WEDNESDAY, 600))
    back = NOW - 1_000_000

    state, effects = tell(state, TimeCame(), back)
    assert all(at <= back + 1800.0 for at in wakes(effects))
    state, effects = tell(state, TimeCame(), back + 1800.0)

    assert failures(effects) == [Refusal.NO_CONSENT]


def test_where_nothing_serves_there_is_nothing_to_disturb() -> None:
    state, _ = tell(fresh(), assign(1, R2, watch=watch(NIGHT, consent=True, trial=TRIAL)))
    state, effects = tell(state, ConsentGiven(BUNDLE, Stage.DOWNLOAD))
    assert FetchManifest(R2) in effects
    state, _ = tell(state, ManifestReady(BUNDLE, manifest(R2), HARDWARE))
    state, _ = tell(state, FilesReady(BUNDLE, 1))

    state, effects = tell(state, SelfTestDone(BUNDLE, None, ""))

    assert Serve(R2) in effects
    assert Step.TRYING not in steps(effects)


# -- controls ----------------------------------------------------------------------------------------------------------


def test_a_control_waits_for_the_same_window_but_not_for_consent() -> None:
    state, effects = tell(serving(R1), assign(2, R1, watch=watch(NIGHT, consent=True)))
    assert ReadClock(R1) in effects
    assert OpenWindow(R1) not in effects

    state, outside = tell(state, ClockRead(R1.bundle_sha256, WEDNESDAY, 100))
    state, due = tell(state, TimeCame(), NOW + 1200)
    state, inside = tell(state, ClockRead(R1.bundle_sha256, WEDNESDAY, 120), NOW + 1200)

    assert steps(outside) == [Step.DEFERRED]
    assert ReadClock(R1) in due
    assert OpenWindow(R1) in inside
    assert not any(isinstance(effect, AskConsent) for effect in (*outside, *due, *inside))


def test_a_control_tells_how_it_did_before_its_window_too() -> None:
    state, effects = tell(serving(R1), assign(2, R1, watch=WATCH))
    assert MeasureBefore(R1, R1, WATCH.window_s, WATCH.requests_min) in effects

    state, _ = tell(state, BeforeMeasured(R1.bundle_sha256, 1.5))
    _, effects = tell(state, WindowMeasured(R1.bundle_sha256, GOOD, Slo()), NOW + 10)

    (outcome,) = outcomes(effects)
    assert outcome.window == changed(GOOD, latency_ms_p95_before=1.5)


# -- consent -----------------------------------------------------------------------------------------------------------


def test_consent_is_asked_before_the_download_and_before_the_switch() -> None:
    state, effects = tell(serving(R1), assign(2, R2, watch=watch(consent=True)))
    assert AskConsent(R2, Stage.DOWNLOAD) in effects
    assert FetchManifest(R2) not in effects

    state, effects = tell(state, ConsentGiven(BUNDLE, Stage.DOWNLOAD))
    assert FetchManifest(R2) in effects
    state, effects = proven(watch(consent=True))
    assert effects == (AskConsent(R2, Stage.ACTIVATE),)
    state, effects = tell(state, ConsentGiven(BUNDLE, Stage.ACTIVATE))

    assert Serve(R2) in effects


def test_an_answer_to_another_question_counts_for_nothing() -> None:
    state, _ = tell(serving(R1), assign(2, R2, watch=watch(consent=True)))

    after, effects = tell(state, ConsentGiven(BUNDLE, Stage.ACTIVATE))

    assert (after, effects) == (state, ())


def test_consent_alone_opens_no_window() -> None:
    state, _ = proven(watch(NIGHT, consent=True))

    after, effects = tell(state, ConsentGiven(BUNDLE, Stage.ACTIVATE))

    assert (after, effects) == (state, ())


def test_a_device_that_says_later_is_asked_again_when_it_said() -> None:
    state, _ = tell(serving(R1), assign(2, R2, watch=watch(consent=True)))

    state, effects = tell(state, ConsentDeferred(BUNDLE, Stage.DOWNLOAD, "the link is metered", 300.0))
    assert [told.detail for told in deferrals(effects)] == ["download: the link is metered"]
    state, early = tell(state, TimeCame(), NOW + 299)
    state, due = tell(state, TimeCame(), NOW + 300)

    assert early == (WakeAt(NOW + 300),)
    assert AskConsent(R2, Stage.DOWNLOAD) in due
    assert wakes(due) == [NOW + 300 + ANSWER_S]


def test_another_reason_is_reported_but_not_every_moment() -> None:
    state, _ = tell(serving(R1), assign(2, R2, watch=watch(consent=True)))
    told = []

    for second in range(0, 200, 10):
        reason = f"battery at {second} %"
        state, effects = tell(state, ConsentDeferred(BUNDLE, Stage.DOWNLOAD, reason, 10.0), NOW + second)
        told += deferrals(effects)
        state, _ = tell(state, TimeCame(), NOW + second + 10)

    assert [step.detail for step in told] == [f"download: battery at {at} %" for at in (0, 60, 120, 180)]
    assert TOLD_GAP_S == 60


def test_while_it_waits_its_engine_is_let_go_and_it_is_proven_again_in_time() -> None:
    state, _ = proven(watch(consent=True))
    state, effects = tell(state, ConsentDeferred(BUNDLE, Stage.ACTIVATE, "busy", 60.0))
    assert Collect(frozenset({R1.bundle_sha256, BUNDLE}), frozenset({BUNDLE})) in effects

    state, _ = tell(state, TimeCame(), NOW + 60)
    state, effects = tell(state, ConsentGiven(BUNDLE, Stage.ACTIVATE), NOW + 60)
    assert SelfTest(R2) in effects
    assert Collect(frozenset({R1.bundle_sha256, BUNDLE})) in effects
    state, effects = tell(state, SelfTestDone(BUNDLE, None, ""), NOW + 65)

    assert Serve(R2) in effects


def test_a_device_that_is_called_back_is_never_deferred() -> None:
    state = serving(R2, standby=R1)
    state = replace(state, counter=2)

    state, effects = tell(state, assign(3, R1))
    assert SelfTest(R1) in effects
    state, effects = tell(state, SelfTestDone(R1.bundle_sha256, None, ""))

    assert Serve(R1) in effects
    assert Step.COMMITTED in steps(effects)


def test_a_watched_way_back_to_standby_downloads_nothing_and_asks_before_the_switch() -> None:
    state, effects = tell(serving(R2, standby=R1), assign(2, R1, watch=watch(consent=True)))
    assert not any(isinstance(effect, AskConsent | FetchManifest) for effect in effects)

    state, effects = tell(state, SelfTestDone(R1.bundle_sha256, None, ""))

    assert effects == (AskConsent(R1, Stage.ACTIVATE),)


# -- download ----------------------------------------------------------------------------------------------------------


def test_a_download_has_a_deadline_of_its_own() -> None:
    state, effects = tell(serving(R1), assign(2, R2, watch=watch(download_s=100.0)))
    assert NOW + 100 in wakes(effects)

    state, effects = tell(state, TimeCame(), NOW + 100)

    assert failures(effects) == [Refusal.TIMED_OUT]
    assert "download" in (state.models[R1.model].last_error or "")


def test_after_the_download_only_the_whole_deadline_counts() -> None:
    state, _ = tell(serving(R1), assign(2, R2, watch=watch(download_s=100.0)))
    state, _ = tell(state, ManifestReady(BUNDLE, manifest(R2), HARDWARE))
    state, _ = tell(state, FilesReady(BUNDLE, 1))

    _, effects = tell(state, TimeCame(), NOW + 500)

    assert failures(effects) == []


# -- trial -------------------------------------------------------------------------------------------------------------


def test_a_candidate_is_tried_before_it_takes_over() -> None:
    state, effects = proven(watch(trial=TRIAL))
    assert steps(effects) == [Step.TRYING]
    assert BeginTrial(R2, TRIAL) in effects
    assert slots(state) == Slots(active=R1)

    state, effects = tell(state, TimeCame(), NOW + 10)
    assert ReadTrial(R2) in effects
    state, effects = tell(state, TrialMeasured(BUNDLE, GOOD_TRIAL), NOW + 60)

    assert Step.SWITCHED in steps(effects)
    assert EndTrial(R2) not in effects  # It is the very candidate that takes over.
    assert effects.index(MeasureBefore(R2, R1, WATCH.window_s, WATCH.requests_min)) < effects.index(Serve(R2))


def test_what_the_trial_showed_is_part_of_the_outcome() -> None:
    state, _ = proven(watch(trial=TRIAL))
    state, _ = tell(state, TrialMeasured(BUNDLE, GOOD_TRIAL))
    state, _ = tell(state, BeforeMeasured(BUNDLE, 0.9))

    _, effects = tell(state, WindowMeasured(BUNDLE, GOOD, Slo()), NOW + 10)

    (outcome,) = outcomes(effects)
    assert outcome.window == changed(
        GOOD, latency_ms_p95_before=0.9, compared=60, disagreed=1, trial_latency_ms_p95=1.1
    )


def test_a_candidate_that_fails_its_trial_never_serves_and_its_figures_are_reported() -> None:
    state, _ = proven(watch(trial=TRIAL))

    state, effects = tell(state, TrialMeasured(BUNDLE, BAD_TRIAL))

    assert failures(effects) == [Refusal.TRIAL_FAILED]
    assert EndTrial(R2) in effects
    assert not any(isinstance(effect, Serve) for effect in effects)
    (outcome,) = outcomes(effects)
    assert outcome.window == WindowReport(seconds=0.0, compared=60, disagreed=20, trial_latency_ms_p95=1.1)
    assert slots(state) == Slots(active=R1)


def test_a_candidate_that_cannot_be_tried_passes_unless_the_trial_is_required() -> None:
    for required, step in ((False, Step.SWITCHED), (True, Step.FAILED)):
        state, _ = proven(watch(trial=changed(TRIAL, required=required)))

        _, effects = tell(state, TrialRefused(BUNDLE, "its inputs are others"))

        assert step in steps(effects)


def test_looks_at_a_trial_do_not_multiply() -> None:
    state, effects = proven(watch(trial=TRIAL))
    pending = set(wakes(effects))

    for second in (1.0, 2.5, 4.0, 7.0):  # Somebody else wakes the device.
        state, effects = tell(state, TimeCame(), NOW + second)
        pending |= set(wakes(effects))

    assert sorted(pending) == [NOW + 10, NOW + WATCH.deadline_s]


def test_a_trial_that_is_called_off_is_ended() -> None:
    state, _ = proven(watch(trial=TRIAL))

    state, effects = tell(state, assign(3, R3))

    assert EndTrial(R2) in effects
    assert Step.CANCELLED in steps(effects)


# -- power and losses --------------------------------------------------------------------------------------------------


def test_power_that_fails_while_it_waits_asks_again() -> None:
    state, _ = tell(serving(R1), assign(2, R2, watch=watch(consent=True)))
    state, _ = tell(state, ConsentDeferred(BUNDLE, Stage.DOWNLOAD, "metered", 300.0))

    state, effects = tell(state, PowerCameBack(frozenset()))

    assert Serve(R1) in effects
    assert AskConsent(R2, Stage.DOWNLOAD) in effects


def test_power_that_fails_while_it_is_ready_proves_it_again_first() -> None:
    state, _ = proven(watch(NIGHT))

    state, effects = tell(state, PowerCameBack(frozenset()))
    assert Serve(R1) in effects
    assert SelfTest(R2) in effects
    state, effects = tell(state, SelfTestDone(BUNDLE, None, ""))

    assert effects == (ReadClock(R2),)


def test_power_that_fails_while_it_is_put_off_does_not_make_the_wait_longer() -> None:
    state, _ = proven(watch(NIGHT, defer_s_max=1800.0))
    state, _ = tell(state, ClockRead(BUNDLE, WEDNESDAY, 600))

    state, effects = tell(state, PowerCameBack(frozenset()), NOW + 1000)
    assert ReadClock(R2) in effects
    state, effects = tell(state, ClockRead(BUNDLE, WEDNESDAY, 616), NOW + 1000)
    state, effects = tell(state, TimeCame(), NOW + 1800)

    assert failures(effects) == [Refusal.NO_CONSENT]


def test_power_that_fails_in_a_trial_begins_it_anew_but_not_for_ever() -> None:
    state, _ = proven(watch(trial=TRIAL))

    for _ in range(BOOTS_MAX - 1):
        state, effects = tell(state, PowerCameBack(frozenset()))
        assert Serve(R1) in effects
        assert BeginTrial(R2, TRIAL) in effects
    state, effects = tell(state, PowerCameBack(frozenset()))

    assert failures(effects) == [Refusal.TRIAL_FAILED]
    assert effects.index(Serve(R1)) >= 0
    assert slots(state) == Slots(active=R1)


def test_a_release_that_waits_takes_over_when_nothing_else_can_serve() -> None:
    state, _ = proven(watch(NIGHT))
    state, _ = tell(state, ClockRead(BUNDLE, WEDNESDAY, 600))

    state, effects = tell(state, ServeFailed(R1.bundle_sha256, "out of memory"))
    assert SelfTest(R2) in effects
    state, effects = tell(state, SelfTestDone(BUNDLE, None, ""))

    assert Serve(R2) in effects


# -- another attempt ---------------------------------------------------------------------------------------------------


def test_another_attempt_tries_again_with_what_is_here() -> None:
    state, _ = tell(serving(R1), assign(2, R2, watch=watch(download_s=100.0)))
    state, effects = tell(state, TimeCame(), NOW + 100)
    assert Collect(frozenset({R1.bundle_sha256, BUNDLE}), frozenset({BUNDLE})) in effects

    same, effects = tell(state, assign(3, R2, watch=watch(download_s=100.0)), NOW + 200)
    assert same.models[R1.model].update is None
    again, effects = tell(state, assign(3, R2, watch=watch(download_s=100.0, attempt=2)), NOW + 200)

    assert FetchManifest(R2) in effects
    assert phase(again) is Phase.MANIFEST


def test_another_attempt_after_a_good_outcome_changes_nothing() -> None:
    state, _ = proven(WATCH)
    state, _ = tell(state, WindowMeasured(BUNDLE, GOOD, Slo()), NOW + 10)

    state, effects = tell(state, assign(3, R2, watch=watch(attempt=2)))

    assert outcomes(effects) == []
    assert phase(state) is None


def test_what_failed_is_kept_until_another_release_is_wanted() -> None:
    state, _ = tell(serving(R1, standby=R3), assign(2, R2, watch=watch(download_s=100.0)))
    state, _ = tell(state, TimeCame(), NOW + 100)

    _, effects = tell(state, assign(3, R1))

    assert Collect(frozenset({R1.bundle_sha256, R3.bundle_sha256})) in effects
