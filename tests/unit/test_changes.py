"""What changed between two moments, and what is different between two devices: from values alone."""

from dataclasses import replace

from muster_controller.api.changes import Between, time_diff
from muster_controller.api.device_diff import device_diff, why_desired
from muster_controller.core.policy import Policy
from muster_controller.core.rollout.state import Rollout, RolloutState
from muster_controller.db.snapshot import Committed
from muster_controller.mending import LATE_WAVE
from muster_controller.ports import Baseline, Desired, Device, Issued, Note, Wanted
from muster_shared.assignment import ModelAssignment, Watch
from muster_shared.ids import DeviceId, EventId, ModelName, RolloutId, Sha256
from muster_shared.messages import Event, Hardware, ReleaseRef, Step, StepReached, Twin, TwinModel

NOW = 1_800_000_000.0
MODEL = ModelName("digits")
ONE, OTHER = DeviceId("dev-1"), DeviceId("dev-2")


def release(number: int) -> ReleaseRef:
    return ReleaseRef(
        model=MODEL, version=f"1.{number}.0", release=number, bundle_sha256=Sha256(f"{number:064x}"), bundle_length=10
    )


def rollout(name: str, number: int, **policy: object) -> Rollout:
    return Rollout(
        id=RolloutId(name),
        model=MODEL,
        release=release(number),
        previous=release(1),
        policy=Policy(**policy),  # type: ignore[arg-type]
        waves=(5,),
        created_at=NOW - 60,
        created_by="anna",
    )


def wanted(number: int, by: str, *, wave: int | None = None) -> Wanted:
    watch = None if wave is None else Watch(rollout=RolloutId(by), wave=wave, window_s=1.0, window_max_s=2.0)
    return Wanted(ModelAssignment(release=release(number), watch=watch), RolloutId(by), NOW - 60)


def told(device: DeviceId, number: int, by: str, *, counter: int) -> Issued:
    return Issued(device, counter, NOW - 60, {MODEL: wanted(number, by)})


def device(name: DeviceId, *, site: str, active: int, standby: int | None = None) -> Device:
    model = TwinModel(
        model=MODEL, phase="idle", active=release(active), standby=None if standby is None else release(standby)
    )
    twin = Twin(
        device=name,
        sent_at=NOW,
        boot="b",
        sequence=1,
        agent_version="0.1.0",
        counter=1,
        hardware=Hardware(device_class="sim", arch="x86_64"),
        labels={"site": site},
        models=(model,),
    )
    return Device(name, online=True, seen_at=NOW, twin=twin)


def test_devices_that_moved_together_are_one_line_with_who_moved_them() -> None:
    before = {each: told(each, 1, "r-1", counter=1) for each in (ONE, OTHER)}
    after = {each: told(each, 2, "r-2", counter=2) for each in (ONE, OTHER)}
    rollouts = {RolloutId("r-2"): rollout("r-2", 2)}

    found = time_diff(Between(NOW - 100, NOW, told_before=before, told_after=after, rollouts=rollouts))

    (line,) = found.assignments
    assert (line.before, line.after, line.devices, line.rollout, line.by) == ("1.1.0", "1.2.0", 2, "r-2", "anna")
    assert line.sample == [ONE, OTHER]


def test_a_renewal_is_no_change() -> None:
    before = {ONE: told(ONE, 1, "r-1", counter=1)}
    after = {ONE: told(ONE, 1, "r-1", counter=9)}

    found = time_diff(Between(NOW - 100, NOW, told_before=before, told_after=after))

    assert found.assignments == []


def test_a_device_that_is_new_moved_from_nothing() -> None:
    found = time_diff(Between(NOW - 100, NOW, told_after={ONE: told(ONE, 1, "gone", counter=1)}))

    assert [(line.before, line.after, line.by) for line in found.assignments] == [(None, "1.1.0", "unknown")]


def test_baselines_are_told_by_group_and_only_where_they_differ() -> None:
    rollouts = {
        RolloutId("r-1"): rollout("r-1", 1),
        RolloutId("r-2"): rollout("r-2", 2, selector="site=oslo"),
        RolloutId("r-3"): rollout("r-3", 1),
    }
    earlier = Note(NOW - 500, "baseline_set", "r-1", "digits 1.1.0")
    same = Note(NOW - 50, "baseline_set", "r-3", "digits 1.1.0")
    oslo = Note(NOW - 40, "baseline_set", "r-2", "digits 1.2.0")

    found = time_diff(Between(NOW - 100, NOW, rollouts=rollouts, notes=(same, oslo), baselines_before=(earlier,)))

    (line,) = found.baselines
    assert (line.selector, line.before, line.after, line.by) == ("site=oslo", None, "1.2.0", "anna")


def test_a_baseline_that_is_set_again_counts_where_another_group_was_newer() -> None:
    rollouts = {RolloutId("r-1"): rollout("r-1", 1), RolloutId("r-2"): rollout("r-2", 2, selector="site=oslo")}
    everybody = Note(NOW - 500, "baseline_set", "r-1", "digits 1.1.0")
    oslo = Note(NOW - 400, "baseline_set", "r-2", "digits 1.2.0")
    again = Note(NOW - 40, "baseline_set", "r-1", "digits 1.1.0")

    found = time_diff(Between(NOW - 100, NOW, rollouts=rollouts, notes=(again,), baselines_before=(oslo, everybody)))

    assert [(line.selector, line.before, line.after) for line in found.baselines] == [("", "1.1.0", "1.1.0")]


def test_a_rollout_is_told_with_its_orders_and_what_its_policy_has_otherwise() -> None:
    newer, older = rollout("r-2", 2, alpha=0.01), rollout("r-1", 1)
    note = Note(NOW - 30, "rollout_pause", "r-2", "lunch", "ben")

    found = time_diff(
        Between(
            NOW - 100,
            NOW,
            rollouts={newer.id: newer},
            policies_before={newer.id: older},
            notes=(note,),
        )
    )

    (line,) = found.rollouts
    assert line.policy == {"alpha": 0.01}
    assert [(each.what, each.before, each.after) for each in line.policy_changes] == [("policy.alpha", 0.05, 0.01)]
    assert line.compared_with == "r-1"
    assert [(each.what, each.by) for each in line.orders] == [("rollout_pause", "ben")]


def test_switches_and_ways_back_are_counted_apart() -> None:
    def event(number: int, step: Step) -> Event:
        body = StepReached(release=release(2), step=step)
        return Event(id=EventId(f"e-{number}"), device=ONE, at=NOW, body=body)

    steps = (Step.SWITCHED, Step.SWITCHED, Step.ROLLED_BACK, Step.TESTING)
    found = time_diff(Between(NOW - 100, NOW, events=[event(*each) for each in enumerate(steps)]))

    assert [(line.version, line.switched, line.rolled_back) for line in found.switches] == [("1.2.0", 2, 1)]


def test_more_lines_than_fit_are_counted() -> None:
    notes = [Note(NOW, "device_left_rollout", f"dev-{number}", "digits: moved") for number in range(250)]

    found = time_diff(Between(NOW - 100, NOW, notes=notes))

    assert len(found.groups) == 200
    assert found.left_out == {"groups": 50}


def test_two_devices_differ_in_labels_and_in_what_they_run_and_why() -> None:
    one, other = device(ONE, site="bergen", active=1), device(OTHER, site="oslo", active=2, standby=1)
    group, everybody = rollout("r-2", 2, selector="site=oslo"), rollout("r-1", 1)
    fleet = Committed(
        devices={ONE: one, OTHER: other},
        desired={
            ONE: Desired(ONE, 1, models={MODEL: wanted(1, "r-1")}),
            OTHER: Desired(OTHER, 1, models={MODEL: wanted(2, "r-2", wave=0)}),
        },
        baselines={
            MODEL: (
                Baseline(release(2), group.id, "site=oslo", NOW),
                Baseline(release(1), everybody.id, "", NOW - 100),
            )
        },
        running={},
    )
    known = {group.id: group, everybody.id: everybody}

    found = device_diff(fleet, one, other, known.get, NOW)

    assert [(each.what, each.before, each.after) for each in found.differences] == [("labels.site", "bergen", "oslo")]
    (model,) = found.models
    assert not model.same
    assert (model.a.active, model.a.standby, model.a.baseline) == ("1.1.0", None, "1.1.0")
    assert (model.b.active, model.b.standby, model.b.baseline) == ("1.2.0", "1.1.0", "1.2.0")
    assert "r-2, created by anna, told it in wave 1" in model.b.why


def test_why_a_device_should_run_something_is_told_for_every_way_to_get_there() -> None:
    known = device(ONE, site="oslo", active=1)
    running = rollout("r-2", 2)

    def said(each: Wanted | None, by: Rollout | None) -> str:
        return why_desired(known, each, by, NOW)

    assert said(None, None) == "nobody has told it to run this model"
    assert "not known any more" in said(wanted(2, "r-9"), None)
    assert "came late to the baseline" in said(wanted(2, "r-2", wave=LATE_WAVE), running)
    assert "holds it back beside wave 3" in said(wanted(1, "r-2", wave=2), running)
    assert "called it back" in said(wanted(1, "r-2"), replace(running, state=RolloutState.ABORTED))
    assert "set it as the baseline" in said(wanted(2, "r-2"), running)
    assert "told it at once" in said(wanted(2, "r-2"), replace(running, at_once=True))
