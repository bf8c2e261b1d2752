"""Traps that other tools' rollout machines fell into: each promise, kept by ours, and broken by the anchor's rule.

The anchor's case is expected to fail, strictly: were the promise one that anything keeps, the test would say so.
"""

from collections.abc import Callable, Sequence
from math import nan

import msgspec
import pytest

from harness.anchor_gates import kayenta_passes
from harness.anchor_machines import AwsContinuousJob, HawkBit, MenderPhases, Tool
from harness.rollout_story import NEW, Story, names, policy
from muster_controller.core.policy import Policy, Rate, Threshold
from muster_controller.core.rollout.events import Order, OrderRefused
from muster_controller.core.rollout.pace import BURST_S
from muster_controller.core.rollout.state import RolloutState
from muster_shared.ids import DeviceId

FLEET = names(30)
FIRST, SECOND = FLEET[:5], FLEET[5:]


class Muster:
    """Ours, driven as the others are."""

    def __init__(self, chosen: Policy) -> None:
        self.story = Story(len(FLEET), chosen, classes=1)
        self.story.tick()

    def pass_time(self, seconds: float) -> None:
        end = self.story.now + seconds
        while self.story.rollout.state is not RolloutState.ABORTED and self.story.rollout.due_at <= end:
            self.story.now = max(self.story.now, self.story.rollout.due_at)
            before = self.story.rollout.due_at
            self.story.tick()
            if self.story.rollout.due_at == before:
                break
        self.story.now = end

    def report(self, device: DeviceId, good: bool) -> None:
        self.story.report(device, good, self.story.member(device).wave)

    def resume(self) -> None:
        try:
            self.story.order(Order.RESUME)
        except OrderRefused:
            return  # It says why, and rests.

    def cancel(self) -> None:
        self.story.order(Order.ABORT)

    def join(self, device: DeviceId) -> None:
        self.story.join(device)

    @property
    def told(self) -> Sequence[DeviceId]:
        return self.story.told(NEW)

    @property
    def left_with_it(self) -> Sequence[DeviceId]:
        return [device for device, release in self.story.last_told().items() if release == NEW]


WAVES = policy(waves=(5,), controls_per_device=0, failure_objective=0.5, success_required=0.9, alpha=1e-6)


def muster(**changes: object) -> Callable[[], Tool]:
    chosen = msgspec.structs.replace(WAVES, **changes)
    return lambda: Muster(chosen)


def anchor(begin: Callable[[], Tool], name: str) -> object:
    """Return the case of an anchor: it breaks the promise, or the test proves nothing."""
    return pytest.param(begin, id=name, marks=pytest.mark.xfail(raises=AssertionError, strict=True))


def ours(begin: Callable[[], Tool]) -> object:
    return pytest.param(begin, id="ours")


def hawkbit() -> Tool:
    return HawkBit([FIRST, SECOND])


def aws() -> Tool:
    return AwsContinuousJob(FLEET, per_minute=6.0)


@pytest.mark.parametrize("begin", [ours(muster()), anchor(hawkbit, "hawkbit")])
def test_a_group_that_ended_without_its_success_threshold_does_not_start_the_next(begin: Callable[[], Tool]) -> None:
    tool = begin()

    for number, device in enumerate(FIRST):
        tool.report(device, number >= 2)
    tool.pass_time(60.0)

    assert set(tool.told) == set(FIRST)


@pytest.mark.parametrize("begin", [ours(muster()), anchor(hawkbit, "hawkbit")])
def test_resuming_after_an_error_does_not_start_the_next_group(begin: Callable[[], Tool]) -> None:
    tool = begin()
    for number, device in enumerate(FIRST):
        tool.report(device, number >= 3)
    tool.pass_time(60.0)

    tool.resume()
    tool.pass_time(60.0)

    assert set(tool.told) == set(FIRST)


def stuck_hawkbit() -> Tool:
    return HawkBit([FIRST, SECOND], success=90.0, error=30.0)


@pytest.mark.parametrize(
    "begin",
    [
        ours(muster(success_required=0.6, abort_when=(Threshold(failures="30%", minimum=5),))),
        anchor(stuck_hawkbit, "hawkbit"),
    ],
)
def test_devices_that_fall_silent_fail(begin: Callable[[], Tool]) -> None:
    tool = begin()

    for device in FIRST[:3]:
        tool.report(device, True)
    tool.pass_time(10_000.0)

    assert set(tool.told) == set(FIRST)
    assert not set(tool.left_with_it) & set(FIRST)


def late_hawkbit() -> Tool:
    return HawkBit([FLEET], success=90.0, error=50.0)


@pytest.mark.parametrize(
    "begin",
    [
        ours(muster(waves=("100%",), abort_when=(Threshold(failures="50%", minimum=5),))),
        anchor(late_hawkbit, "hawkbit"),
    ],
)
def test_early_failures_are_not_diluted_by_devices_that_have_not_reported(begin: Callable[[], Tool]) -> None:
    tool = begin()

    for device in tool.told[:10]:
        tool.report(device, False)
    tool.pass_time(10.0)

    assert not set(tool.left_with_it) & set(tool.told[:10])


@pytest.mark.parametrize(
    "begin", [ours(muster(waves=("100%",), rate=Rate(per_minute=6.0), deadline_s=4000.0)), anchor(aws, "aws")]
)
def test_late_joiners_do_not_bypass_the_rate(begin: Callable[[], Tool]) -> None:
    tool = begin()
    tool.pass_time(10.0)
    told = len(tool.told)

    for number in range(20):
        tool.join(DeviceId(f"late{number:02}"))
    tool.pass_time(10.0)

    assert len(tool.told) - told <= 1 + 6.0 / 60 * BURST_S


@pytest.mark.parametrize("begin", [ours(muster(on_abort="roll_back")), anchor(aws, "aws")])
def test_cancelling_leaves_no_device_updating(begin: Callable[[], Tool]) -> None:
    tool = begin()
    tool.pass_time(50.0)
    assert tool.told

    tool.cancel()
    tool.pass_time(1.0)

    assert not tool.left_with_it


@pytest.mark.parametrize("begin", [ours(muster(on_abort="stop")), anchor(aws, "aws")])
def test_stopping_leaves_no_device_updating_either(begin: Callable[[], Tool]) -> None:
    tool = begin()
    tool.pass_time(50.0)
    done = tool.told[0]
    tool.report(done, True)

    tool.cancel()

    assert list(tool.left_with_it) == [done]


def mender() -> Tool:
    return MenderPhases([FIRST, SECOND], every_s=600.0)


@pytest.mark.parametrize("begin", [ours(muster()), anchor(mender, "mender"), anchor(hawkbit, "hawkbit")])
def test_no_wave_begins_while_the_one_before_has_failed(begin: Callable[[], Tool]) -> None:
    tool = begin()

    for device in FIRST[:2]:
        tool.report(device, False)
    for device in FIRST[2:]:
        tool.report(device, True)
    tool.pass_time(10_000.0)

    assert set(tool.told) == set(FIRST)


class KayentaWave(MenderPhases):
    """A wave that is analysed when its time is over, by what was measured; what is missing becomes 0."""

    def __init__(self) -> None:
        super().__init__([FIRST], every_s=600.0)
        self._values: list[float] = []

    def report(self, device: DeviceId, good: bool) -> None:
        super().report(device, good)
        self._values.append(0.0 if good else 1.0)

    def pass_time(self, seconds: float) -> None:
        super().pass_time(seconds)
        if seconds and kayenta_passes(self._values or [nan] * len(FIRST), [0.0] * len(SECOND)):
            self.begin(SECOND)


@pytest.mark.parametrize("begin", [ours(muster()), anchor(KayentaWave, "kayenta")])
def test_no_data_is_no_pass(begin: Callable[[], Tool]) -> None:
    tool = begin()

    tool.pass_time(10_000.0)

    assert set(tool.told) == set(FIRST)
