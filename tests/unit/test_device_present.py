"""The page of a device: what differs, how long each step of an update took, and what its charts show."""

import msgspec

from muster_controller.api.views import device_detail
from muster_controller.db.device_samples import DeviceSample, ModelSample
from muster_controller.holds import Hold, HoldKind
from muster_controller.ports import Desired, Device, Wanted
from muster_controller.web.device_present import POINTS_MAX, actions, charts, differences, updates
from muster_shared.assignment import ModelAssignment
from muster_shared.ids import DeviceId, EventId, ModelName, RolloutId, Sha256
from muster_shared.messages import (
    Event,
    Hardware,
    OutcomeReported,
    Refusal,
    ReleaseRef,
    Step,
    StepReached,
    Twin,
    TwinModel,
)

MODEL, DEVICE, ROLLOUT = ModelName("digits"), DeviceId("dev-a"), RolloutId("r-1")


def release(number: int) -> ReleaseRef:
    return ReleaseRef(
        model=MODEL, version=f"1.{number}.0", release=number, bundle_sha256=Sha256(f"{number:064x}"), bundle_length=10
    )


def device(serves: int = 1, counter: int = 7) -> Device:
    twin = Twin(
        device=DEVICE,
        sent_at=1.0,
        boot="b",
        sequence=1,
        agent_version="1",
        counter=counter,
        hardware=Hardware(device_class="sim", arch="x86_64"),
        models=(TwinModel(model=MODEL, phase="idle", active=release(serves)),),
    )
    return Device(DEVICE, online=True, boot="b", seen_at=1.0, twin=twin)


def desired(number: int = 1, counter: int = 7) -> Desired:
    wanted = Wanted(ModelAssignment(release=release(number)), ROLLOUT, 1.0)
    return Desired(DEVICE, counter, 1e9, {MODEL: wanted}, b"x", 1.0)


def test_what_is_not_as_desired_is_marked_and_the_rest_is_not() -> None:
    rows = {row.what: row.differs for row in differences(device_detail(device(1, 6), desired(2, 7)))}
    same = differences(device_detail(device(), desired()))

    assert rows == {"digits, serves": True, "assignment": True}
    assert not any(row.differs for row in same)


def step(kind: Step, seconds: float, fetched: int = 0, **changes: object) -> Event:
    body = StepReached(release=release(2), step=kind, rollout=ROLLOUT, seconds=seconds, bytes_fetched=fetched)
    body = msgspec.structs.replace(body, **changes)
    return Event(id=EventId(f"e{kind.value}{seconds}"), device=DEVICE, at=seconds, body=body)


def outcome(*, good: bool, attempt: int = 1) -> Event:
    body = OutcomeReported(release=release(2), rollout=ROLLOUT, wave=0, good=good, reason="because", attempt=attempt)
    return Event(id=EventId(f"o{attempt}"), device=DEVICE, at=1.0, body=body)


def test_each_step_says_how_long_it_took_and_what_was_fetched_by_then() -> None:
    told = [
        step(Step.ACCEPTED, 0.0),
        step(Step.FETCHING, 1.0),
        step(Step.TESTING, 31.0, 5000),
        step(Step.SWITCHED, 33.5, 5000),
        outcome(good=True),
    ]
    newest_first = [(100.0 + place, event) for place, event in reversed(list(enumerate(told)))]

    (found,) = updates(newest_first)

    assert [(each.step, each.took_s) for each in found.steps] == [
        ("accepted", 0.0),
        ("fetching", 1.0),
        ("testing", 30.0),
        ("switched", 2.5),
    ]
    assert (found.total_s, found.fetched, found.good, found.began_at) == (33.5, 5000, True, 100.0)


def test_another_attempt_and_an_update_that_began_anew_are_lines_of_their_own() -> None:
    told = [
        step(Step.ACCEPTED, 0.0),
        step(Step.FAILED, 9.0, refusal=Refusal.DISK_FULL, detail="no room"),
        step(Step.ACCEPTED, 0.0, attempt=2),
        step(Step.SWITCHED, 5.0, attempt=2),
        step(Step.ACCEPTED, 0.5, attempt=2),
    ]

    found = updates([(float(place), event) for place, event in reversed(list(enumerate(told)))])

    assert [(each.attempt, len(each.steps)) for each in found] == [(2, 1), (2, 2), (1, 2)]
    assert found[-1].last.detail == "disk full no room"


def test_a_step_whose_beginning_is_no_longer_known_has_no_length() -> None:
    (found,) = updates([(1.0, step(Step.TESTING, 31.0))])

    assert found.steps[0].took_s is None


def sample(at: float, requests: int, **host: float) -> DeviceSample:
    return DeviceSample(at, models={MODEL: ModelSample(requests, 0, 2.0)}, **host)


def test_requests_a_minute_are_what_rose_and_unknown_where_the_agent_began_anew() -> None:
    plots = {each.id: each for each in charts([sample(0, 0), sample(60, 30), sample(120, 10)])}

    assert plots["plot-requests"].series[0].points == [(60, 30.0), (120, None)]


def test_a_line_is_broken_where_nothing_was_heard_and_a_host_that_tells_nothing_has_none() -> None:
    plots = {each.id: each for each in charts([sample(0, 0, cpu_percent=5.0), sample(9000, 0, cpu_percent=7.0)])}

    assert [y for _, y in plots["plot-host"].series[0].points] == [5.0, None, 7.0]
    assert [each.name for each in plots["plot-host"].series] == ["processor"]
    assert "plot-heat" not in plots


def test_a_day_of_samples_is_drawn_with_a_bounded_number_of_points_and_its_newest() -> None:
    plots = charts([sample(60.0 * number, number) for number in range(1440)])

    points = plots[0].series[0].points
    assert len(points) <= POINTS_MAX + 1
    assert points[-1][0] == 60.0 * 1439


def test_without_samples_the_charts_say_what_to_do() -> None:
    assert all("recorded" in each.words for each in charts([]) if each.id != "plot-heat")


def test_what_is_ordered_follows_from_how_the_device_is_held() -> None:
    def offered(kind: HoldKind | None) -> list[str]:
        hold = None if kind is None else Hold(DEVICE, kind, "anna", 1.0)
        return [each.id for each in actions(device_detail(device(), desired(), hold=hold))]

    assert offered(None) == ["pin", "quarantine", "decommission"]
    assert offered(HoldKind.PINNED) == ["unpin", "quarantine", "decommission"]
    assert offered(HoldKind.QUARANTINED) == ["release", "decommission"]
    assert offered(HoldKind.REVOKED) == ["decommission"]
