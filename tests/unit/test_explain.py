"""Why a device waits, what a rollout waits for, and that the orders said to be possible are those that are obeyed."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from muster_controller.core.policy import Approval, Policy, Rate
from muster_controller.core.rollout import machine
from muster_controller.core.rollout.events import (
    DeviceFacts,
    DeviceLeft,
    Event,
    Order,
    Ordered,
    OrderRefused,
    OutcomeArrived,
    StepArrived,
    Tick,
)
from muster_controller.core.rollout.explain import Presence, Why, explained, who_waits, why
from muster_controller.core.rollout.outlook import gate, is_gate_reached, orders, outlook
from muster_controller.core.rollout.state import ENDED, Outcome, Rollout, RolloutState
from muster_shared.ids import DeviceId, ModelName, RolloutId, Sha256
from muster_shared.messages import ReleaseRef, Step

NOW = 1_800_000_000.0
DEVICES = tuple(DeviceId(f"dev-{number:02}") for number in range(8))


def release(number: int) -> ReleaseRef:
    return ReleaseRef(
        model=ModelName("digits"),
        version=f"1.{number}.0",
        release=number,
        bundle_sha256=Sha256(f"{number:064x}"),
        bundle_length=10,
    )


OLD, NEW = release(1), release(2)


def begun(**policy: Any) -> Rollout:
    """A rollout of 1.2.0 over eight devices of one class, waves of two, without controls unless told."""
    given = Policy(**{"waves": (2,), "controls_per_device": 0, "deadline_s": 3600.0, **policy})
    devices = dict.fromkeys(DEVICES, "sim")
    return machine.create(RolloutId("r-1"), NEW, OLD, given, devices, now=NOW, actor="anna", shuffle=lambda _: None)


def facts(offline: tuple[str, ...] = ()) -> Mapping[DeviceId, DeviceFacts]:
    return {device: DeviceFacts(device not in offline, OLD) for device in DEVICES}


def after(rollout: Rollout, *events: Event, at: float = NOW) -> Rollout:
    for event in events:
        rollout = machine.advance(rollout, event, at).rollout
    return rollout


def good(number: int, wave: int = 0) -> OutcomeArrived:
    return OutcomeArrived(DEVICES[number], wave, True, "as it should")


def bad(number: int, wave: int = 0) -> OutcomeArrived:
    return OutcomeArrived(DEVICES[number], wave, False, "accuracy 0.3")


def told(rollout: Rollout, number: int, *, online: bool = True, now: float = NOW) -> tuple[Why, str]:
    found = explained(rollout, rollout.members[DEVICES[number]], Presence(online, NOW - 7200), now)
    return found.why, found.sentence


def test_a_device_that_is_offline_is_said_to_be_since_when() -> None:
    rollout = after(begun(), Tick(facts(("dev-05",))))

    kind, sentence = told(rollout, 5, online=False)

    assert kind is Why.OFFLINE
    assert "last seen" in sentence
    assert "(2 h ago)" in sentence


def test_a_device_of_a_later_wave_waits_for_the_present_one() -> None:
    rollout = after(begun(), Tick(facts()))

    kind, sentence = told(rollout, 5)

    assert kind is Why.WAVE
    assert "in wave 1 2 devices have no outcome yet" in sentence


def test_a_control_knows_for_whom_it_is_held_back() -> None:
    rollout = after(begun(controls_per_device=1), Tick(facts()))

    held = next(iter(rollout.controls.values()))
    found = explained(rollout, rollout.members[held.device], Presence(True), NOW)

    assert found.why is Why.HELD_BACK
    assert held.partner in found.sentence


def test_a_queued_device_waits_for_the_pace_and_knows_its_place() -> None:
    rollout = after(begun(waves=(4,), rate=Rate(per_minute=1.0)), Tick(facts()))

    kinds = [told(rollout, number) for number in range(4)]

    assert [kind for kind, _ in kinds] == [Why.UNDER_WAY, Why.PACE, Why.PACE, Why.PACE]
    assert "number 3 of 3" in kinds[3][1]
    assert "(in 3 min)" in kinds[3][1]


def test_a_queued_device_waits_for_concurrency() -> None:
    rollout = after(begun(waves=(4,), concurrency=2), Tick(facts()))

    kind, sentence = told(rollout, 2)

    assert kind is Why.CONCURRENCY
    assert "2 devices are under way" in sentence


def test_a_device_that_defers_says_why_and_until_when() -> None:
    step = StepArrived(DEVICES[0], NEW.bundle_sha256, Step.DEFERRED, 0, 1.0, detail="on battery", wait_s=1800.0)
    rollout = after(begun(consent=True, defer_s_max=7200.0), Tick(facts()), step)

    found = explained(rollout, rollout.members[DEVICES[0]], Presence(True), NOW)

    assert found.why is Why.DEFERRED
    assert "on battery" in found.sentence
    assert found.until == NOW + 1800


def test_a_device_that_tries_again_says_when() -> None:
    failed = StepArrived(DEVICES[0], NEW.bundle_sha256, Step.FAILED, 0, 1.0)
    rollout = after(begun(retries=2, retry_wait_s=60.0), Tick(facts()), failed, bad(0))

    kind, sentence = told(rollout, 0)

    assert kind is Why.RETRY
    assert "attempt 2 of 3" in sentence


def test_between_waves_devices_wait_for_the_soak_time_and_then_for_the_approval() -> None:
    policy: dict[str, Any] = {"soak_s": 600.0, "approvals": (Approval(before=2, by=("ben",)),)}
    rollout = after(begun(**policy), Tick(facts()), good(0), good(1), Tick(facts()))

    soaking, waiting = told(rollout, 5), told(rollout, 5, now=NOW + 601)

    assert soaking[0] is Why.SOAK
    assert waiting == (Why.APPROVAL, "wave 2 waits for approval by ben: 0 of 1")
    assert not is_gate_reached(rollout, NOW)
    assert is_gate_reached(rollout, NOW + 601)


def test_a_paused_and_an_undecided_rollout_are_told_apart() -> None:
    by_hand = after(begun(), Tick(facts()), Ordered(Order.PAUSE, "ben", "lunch"))
    undecided = after(begun(success_required=1.0), Tick(facts()), good(0), bad(1), Tick(facts()))

    assert told(by_hand, 5) == (Why.PAUSED, "the rollout is paused: pause by ben: lunch")
    assert told(undecided, 5)[0] is Why.UNDECIDED
    assert Order.RESUME in orders(by_hand, NOW)
    assert Order.RESUME not in orders(undecided, NOW)


def test_who_left_and_who_was_taken_over_is_told_apart() -> None:
    left = after(begun(), Tick(facts()), DeviceLeft(DEVICES[5], "it is not in the group 'site=oslo' any more"))
    taken = after(begun(), Tick(facts()), DeviceLeft(DEVICES[5], "rollout r-2 took it over", is_taken=True))

    assert told(left, 5) == (Why.LEFT, "left: it is not in the group 'site=oslo' any more")
    assert told(taken, 5) == (Why.TAKEN_OVER, "taken over: rollout r-2 took it over")


def test_an_abort_says_who_is_not_back_yet() -> None:
    rollout = after(begun(), Tick(facts()), good(0), Ordered(Order.ABORT, "ben", "no"))

    assert told(rollout, 0) == (Why.CALLED_BACK, "called back to 1.1.0; it has not said yet that it runs it")
    assert told(rollout, 5)[0] is Why.ENDED
    assert "1 device" not in outlook(rollout, NOW)
    assert "2 devices called back" in outlook(rollout, NOW)


def test_after_the_end_a_late_device_is_promised_the_release() -> None:
    everybody = {device: DeviceFacts(device != "dev-07", OLD) for device in DEVICES}
    rollout = after(begun(waves=(7,)), Tick(everybody), *(good(number) for number in range(7)), Tick(everybody))

    assert rollout.state is RolloutState.FINISHED
    assert told(rollout, 7, online=False)[0] is Why.OFFLINE
    assert told(rollout, 7)[0] is Why.AFTERWARDS
    assert [each.device for each in who_waits(rollout, {}, NOW)] == ["dev-07"]


def test_what_has_an_outcome_does_not_wait() -> None:
    rollout = after(begun(), Tick(facts()), good(0), bad(1))

    waiting = {each.device for each in who_waits(rollout, dict.fromkeys(DEVICES, Presence(True)), NOW)}

    assert waiting == set(DEVICES[2:])
    assert why(rollout, rollout.members[DEVICES[1]], True, NOW) == "it failed (probation): accuracy 0.3"


def test_the_outlook_names_the_gate_and_how_to_open_it() -> None:
    rollout = begun(approvals=(Approval(before=1, by=("Ben",)),))

    assert gate(rollout) == "wave 1 waits for approval by Ben: 0 of 1"
    assert "Wave 1 waits for approval by Ben" in outlook(rollout, NOW)
    assert "muster rollout approve r-1" in outlook(rollout, NOW)


def test_with_the_next_wave_approved_the_end_may_be_approved_ahead() -> None:
    rollout = begun(approvals=(Approval(before="every"),))

    rollout = after(rollout, Ordered(Order.APPROVE, "ben", ""), Tick(facts()), Ordered(Order.APPROVE, "ben", ""))

    assert Order.APPROVE in orders(rollout, NOW)
    assert obeys(rollout, Order.APPROVE, NOW)


PACES: list[dict[str, Any]] = [
    {},
    {"concurrency": 1},
    {"rate": Rate(per_minute=2.0)},
    {"approvals": (Approval(before="every"),)},
]
STEPS = st.one_of(
    st.tuples(st.just("tick"), st.integers(0, 4000)),
    st.tuples(st.just("good"), st.integers(0, 7)),
    st.tuples(st.just("bad"), st.integers(0, 7)),
    st.tuples(st.just("left"), st.integers(0, 7)),
    st.tuples(st.sampled_from([order.value for order in Order]), st.just(0)),
)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(STEPS, max_size=14),
    st.sampled_from(["roll_back", "stop", "freeze"]),
    st.sampled_from(PACES),
)
def test_every_device_is_explained_and_every_order_said_to_be_possible_is_obeyed(
    steps: list[tuple[str, int]], on_abort: str, extra: dict[str, Any]
) -> None:
    rollout, now = begun(on_abort=on_abort, controls_per_device=1, **extra), NOW
    for kind, number in steps:
        now += number if kind == "tick" else 1
        event: Event
        match kind:
            case "tick":
                event = Tick(facts())
            case "good" | "bad":
                event = OutcomeArrived(DEVICES[number], max(rollout.wave, 0), kind == "good", "so it is")
            case "left":
                event = DeviceLeft(DEVICES[number], "moved")
            case _:
                if Order(kind) not in orders(rollout, now):
                    continue
                event = Ordered(Order(kind), "ben", "", 60.0)
        rollout = machine.advance(rollout, event, now).rollout

        assert outlook(rollout, now).endswith(".")
        for order in Order:
            is_obeyed = obeys(rollout, order, now)
            assert is_obeyed == (order in orders(rollout, now)), order
        for member in rollout.members.values():
            found = explained(rollout, member, Presence(True), now)
            assert found.sentence
            assert (found.why is Why.DONE) <= (member.outcome is not Outcome.PENDING)
            if found.why is Why.ENDED:
                assert rollout.state in ENDED or rollout.state is RolloutState.ABORTING


def obeys(rollout: Rollout, order: Order, now: float) -> bool:
    names = ("ben", "chloe", "dan")
    fresh = next(name for name in names if name not in {each.by for each in rollout.approvals[-1:]})
    try:
        machine.advance(rollout, Ordered(order, fresh, "", 60.0), now)
    except OrderRefused:
        return False
    return True


@pytest.mark.parametrize("at", [float("nan"), 1e30, -1e30])
def test_a_clock_gone_wild_breaks_no_sentence(at: float) -> None:
    rollout = after(begun(), Tick(facts()))
    member = replace(rollout.members[DEVICES[0]], deadline_at=at)

    assert explained(rollout, member, Presence(False, at), NOW).sentence
