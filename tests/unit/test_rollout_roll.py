"""A roll that follows every change says what asking all devices again says."""

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import replace

from hypothesis import given, settings
from hypothesis import strategies as st

from harness.rollout_story import NEW, OLD, OLDER, START, Story, policy
from muster_controller.api.report import report
from muster_controller.api.rollout_views import (
    arm_of,
    everybody,
    listed,
    rollout_detail,
    wave_views,
)
from muster_controller.api.schemas.rollouts import WaveView
from muster_controller.core.gate.strata import VerdictKind
from muster_controller.core.policy import Approval, Policy, Rate
from muster_controller.core.rollout.draft import weigh
from muster_controller.core.rollout.events import Changes, DeviceHeld, Order, OrderRefused
from muster_controller.core.rollout.explain import Held, Presence, Why, who_waits
from muster_controller.core.rollout.outlook import (
    gate,
    is_called_back,
    is_extendable,
    is_waiting,
    is_watched,
    orders,
    outlook,
    soak_ends,
)
from muster_controller.core.rollout.roll import Roll, followed, roll_of
from muster_controller.core.rollout.state import (
    TAKEN,
    Control,
    Member,
    Outcome,
    Pause,
    Rollout,
    RolloutState,
    Verdict,
    assembled,
    home,
    in_order,
    is_in_flight,
    is_queued,
)
from muster_controller.core.rollout.tally import tally_of
from muster_controller.core.rollout.waiting import Present, waiting_of
from muster_controller.web.actions import actions
from muster_shared.ids import DeviceId
from muster_shared.messages import Refusal, Step

MOVES = (
    *("tick", "good", "bad", "fetch", "fail", "defer", "leave", "hold", "join", "beside", "there", "back", "slow"),
    *(each.value for each in Order),
)
WIDE = {"waves": (6, 4), "alpha": 1e-6}
"""Waves of which some do one thing and some another, that failures do not end at once."""
POLICIES = (
    policy(**WIDE, retries=1),
    policy(**WIDE, on_abort="stop", retries=0),
    policy(retries=0, soak_s=40.0),
    policy(**WIDE, approvals=(Approval(before="every", by=("ada",)),), rate=Rate(per_minute=3.0)),
)


def move(story: Story, what: str, which: int) -> Changes:
    """Let one thing happen, and return which devices it names."""
    everyone = sorted(story.rollout.members)
    # Two of three moves are of somebody who is under way: of others little is taken.
    flying = [name for name in everyone if which % 3 and is_in_flight(story.rollout.members[name])]
    told = [name for name in everyone if which % 2 and story.rollout.members[name].is_touched]
    device = (flying or everyone)[which % len(flying or everyone)]
    beside = sorted(device for _, device in story.rollout.controls)
    match what:
        case "tick":
            return story.tick(float(which)).changes
        case "good" | "bad":
            return story.report(device, what == "good").changes
        case "slow":
            return story.report(device, which % 3 > 0, latency=0.1 * (which % 5), disagreed=which % 2 == 0).changes
        case "fetch":
            return story.step(device, Step.FETCHING).changes
        case "fail":
            return story.step(device, Step.FAILED, Refusal.SELF_TEST_FAILED).changes
        case "defer":
            return story.step(device, Step.DEFERRED, wait_s=50.0).changes
        case "beside":
            return story.report(beside[which % len(beside)], which % 2 == 0).changes if beside else Changes()
        case "hold":
            return story.tell(DeviceHeld(device)).changes
        case "there":
            (story.online.discard if device in story.online else story.online.add)(device)
            return Changes()
        case "back":
            before = story.rollout
            story.runs((told or everyone)[which % len(told or everyone)], (OLD, OLD, NEW, OLDER)[which % 4])
            return differing(before, story.rollout)
        case "leave":
            before = story.rollout
            story.leave((told or everyone)[which % len(told or everyone)], is_taken=which % 4 > 1)
            return differing(before, story.rollout)
        case "join":
            before = story.rollout
            story.join(f"late-{len(story.rollout.members):03}")
            return differing(before, story.rollout)
        case _:
            return story.order(Order(what), seconds=10.0).changes


def differing(before: Rollout, after: Rollout) -> Changes:
    """Return what the machine names where the story does not say."""
    return Changes(
        frozenset(key for key, each in after.members.items() if before.members.get(key) != each),
        frozenset(key for key, each in after.controls.items() if before.controls.get(key) != each),
    )


Plain = tuple[int, int, int, dict[float, int], dict[float, int]]


def plain(roll: Roll) -> tuple[tuple[DeviceId, ...], Mapping[object, Plain], Mapping[object, Plain]]:
    """Return all that a roll says, so that two can be compared."""

    def groups(found: object) -> Mapping[object, Plain]:
        assert hasattr(found, "items")
        return {
            kind: (each.places, each.devices, each.bytes_fetched, dict(each.told), dict(each.due))
            for kind, each in found.items()
        }

    return tuple(roll.order[: roll.length]), groups(roll.members), groups(roll.controls)


def recounted(rollout: Rollout, now: float) -> list[WaveView]:
    """Return the waves by asking every device."""
    found = []
    for wave in range(max(len(rollout.waves), rollout.wave + 1)):
        members = [each for each in rollout.members.values() if each.wave == wave]
        held = [each for each in rollout.controls.values() if each.wave == wave and each.outcome is not Outcome.LEFT]
        outcomes = Counter(each.outcome for each in members)
        told = [each.assigned_at for each in members if each.assigned_at is not None]
        found.append(
            WaveView(
                wave=wave,
                planned=rollout.waves[wave] if wave < len(rollout.waves) else None,
                devices=len(members),
                queued=sum(map(is_queued, members)),
                pending=sum(map(is_in_flight, members)),
                deferred=sum(is_in_flight(each) and each.deferred_until is not None for each in members),
                good=outcomes[Outcome.GOOD],
                bad=outcomes[Outcome.BAD],
                left=outcomes[Outcome.LEFT],
                controls=len(held),
                controls_pending=sum(each.outcome is Outcome.PENDING for each in held),
                began_at=rollout.wave_began_at if wave == rollout.wave else min(told, default=None),
                soak_ends_at=soak_ends(rollout, now) if wave == rollout.wave else None,
            )
        )
    return found


def fits(outcome: Outcome | None, wave: int | None, arm: str | None) -> Callable[[Member | Control], bool]:
    return lambda each: outcome in (None, each.outcome) and wave in (None, each.wave) and arm in (None, arm_of(each))


@settings(max_examples=150, deadline=None)
@given(
    st.sampled_from(POLICIES),
    st.lists(st.tuples(st.sampled_from(MOVES), st.integers(0, 150)), max_size=40),
    st.integers(0, 2**18 - 1),
    st.dictionaries(st.integers(0, 17), st.booleans(), max_size=6),
)
def test_what_follows_every_change_is_what_asking_all_devices_again_says(
    chosen: Policy, moves: list[tuple[str, int]], online: int, held: dict[int, bool]
) -> None:
    story = Story(devices=16, policy=chosen, classes=1)
    for name in list(story.active)[:3]:  # Some ran what the release is already, or nothing: they have other ways back.
        story.active[name] = None
    story.active[DeviceId("d00003")] = NEW
    roll = roll_of(story.rollout)

    for what, which in [("tick", 0), *moves]:
        before = story.rollout
        try:
            changes = move(story, what, which)
        except OrderRefused:
            continue
        roll = followed(roll, before, story.rollout, changes)

        assert plain(roll) == plain(roll_of(story.rollout))

    rollout, now = story.rollout, story.now
    assert roll.names((1 << roll.length) - 1) == [each.device for each in in_order(rollout.members.values())]
    assert roll.tally == tally_of(rollout)
    assert wave_views(rollout, now, roll) == recounted(rollout, now)
    assert rollout_detail(rollout, now, roll) == rollout_detail(rollout, now)
    assert report(rollout, [], [], now, roll=roll) == report(rollout, [], [], now)
    assert actions(rollout, now, roll) == actions(rollout, now)
    assert roll.count(lambda each: is_called_back(rollout, each)) == sum(
        is_called_back(rollout, each) for each in rollout.members.values()
    )
    assert set(roll.due(is_in_flight)) == {
        each.deadline_at for each in rollout.members.values() if is_in_flight(each) and each.deadline_at is not None
    }
    assert_waiting(rollout, roll, now, online, {place: each for place, each in held.items() if place < roll.length})


def assert_waiting(rollout: Rollout, roll: Roll, now: float, online: int, held: Mapping[int, bool]) -> None:
    """Ask every device why it waits, and compare."""
    kept = {place: Held(is_quarantined, f"held {place}") for place, is_quarantined in held.items()}
    found = waiting_of(rollout, roll, Present(online, kept, lambda name: 5.0 + len(name)), now)
    fleet = {
        name: Presence(bool(online >> place & 1), 5.0 + len(name), kept.get(place))
        for place, name in enumerate(roll.order[: roll.length])
    }
    wanted = list(who_waits(rollout, fleet, now))
    assert found.counts == Counter(each.why for each in wanted)
    assert found.lines(0, roll.length) == wanted
    for why in {each.why for each in wanted}:
        assert found.lines(1, 2, (why,)) == [each for each in wanted if each.why is why][1:3]


MOMENT = st.sampled_from([None, START, START + 5.0])
DEVICE = st.builds(
    Member,
    device=st.just(DeviceId("")),
    device_class=st.just("nuc"),
    position=st.just(0),
    wave=st.sampled_from([None, 0, 1]),
    outcome=st.sampled_from(Outcome),
    cause=st.sampled_from(["", TAKEN]),
    assigned_at=MOMENT,
    deadline_at=MOMENT,
    retry_at=MOMENT,
    deferred_until=MOMENT,
    bytes_fetched=st.integers(0, 3),
    previous=st.sampled_from([None, OLD, NEW]),
    second=st.sampled_from([None, *Outcome]),
    returned=st.booleans(),
)
BESIDE = st.builds(
    Control,
    device=st.just(DeviceId("")),
    device_class=st.just("nuc"),
    wave=st.sampled_from([0, 1]),
    partner=st.just(DeviceId("d1")),
    assigned_at=MOMENT,
    deadline_at=MOMENT,
    outcome=st.sampled_from(Outcome),
)


@st.composite
def rollouts(draw: st.DrawFn) -> tuple[Rollout, Rollout]:
    """Draw a rollout whose devices stand anyhow, also as the machine never has them, and one that it became."""
    header = replace(
        Story(devices=1, policy=policy(on_abort=draw(st.sampled_from(["roll_back", "stop", "freeze"])))).rollout,
        state=draw(st.sampled_from(RolloutState)),
        pause=draw(st.sampled_from([None, *Pause])),
        previous=draw(st.sampled_from([None, OLD])),
        wave=draw(st.sampled_from([-1, 0, 1])),
        wave_began_at=START,
        wave_passed_at=draw(MOMENT),
        aborting_at=draw(MOMENT),
    )
    if draw(st.booleans()):
        found = weigh(header)
        header = replace(header, verdicts=(Verdict(START, 0, VerdictKind.ABORT, "harm", found),))
    members = draw(st.lists(DEVICE, min_size=2, max_size=9))
    named = [replace(each, device=DeviceId(f"d{place}"), position=place) for place, each in enumerate(members)]
    held = draw(st.dictionaries(st.tuples(st.sampled_from([0, 1]), st.integers(0, 9)), BESIDE, max_size=4))
    beside = [replace(each, wave=wave, device=DeviceId(f"d{place}")) for (wave, place), each in held.items()]
    before = assembled(header, named, beside, {})
    other = draw(st.lists(DEVICE, min_size=len(named), max_size=len(named) + 2))
    after = [replace(each, device=DeviceId(f"d{place}"), position=place) for place, each in enumerate(other)]
    now = draw(st.lists(BESIDE, min_size=len(beside), max_size=len(beside)))
    then = [replace(each, wave=old.wave, device=old.device) for old, each in zip(beside, now, strict=True)]
    return before, assembled(header, after, then, {})


@settings(max_examples=300, deadline=None)
@given(rollouts(), st.integers(0, 2**11 - 1), st.dictionaries(st.integers(0, 10), st.booleans(), max_size=4))
def test_devices_of_a_group_are_alike_in_all_that_is_asked_of_them(
    pair: tuple[Rollout, Rollout], online: int, held: dict[int, bool]
) -> None:
    before, rollout = pair
    now = START + 3.0

    roll = followed(roll_of(before), before, rollout, differing(before, rollout))

    assert plain(roll) == plain(roll_of(rollout))
    assert roll.tally == tally_of(rollout)
    assert wave_views(rollout, now, roll) == recounted(rollout, now)
    members, beside = list(rollout.members.values()), list(rollout.controls.values())
    for asked in asked_of_members(rollout):
        fit = [each for each in members if asked(each)]
        assert roll.count(asked) == len(fit)
        assert roll.names(roll.where(asked)) == [each.device for each in in_order(fit)]
        assert set(roll.due(asked)) == {each.deadline_at for each in fit} - {None}
        assert set(roll.told(asked)) == {each.assigned_at for each in fit} - {None}
    for watched in (is_watched, lambda each: each.outcome is Outcome.PENDING):
        assert roll.count_controls(watched) == sum(map(watched, beside))
        assert set(roll.due_controls(watched)) == {each.deadline_at for each in beside if watched(each)} - {None}
    assert_waiting(rollout, roll, now, online, {place: each for place, each in held.items() if place < roll.length})


def asked_of_members(rollout: Rollout) -> list[Callable[[Member], bool]]:
    """Return all that pages ask of a member."""
    return [
        is_waiting,
        is_queued,
        is_in_flight,
        is_extendable,
        lambda each: is_called_back(rollout, each),
        lambda each: each.is_touched and home(rollout, each) is not None,
        lambda each: each.is_touched and each.outcome is Outcome.BAD,
        lambda each: each.outcome is Outcome.BAD and each.is_touched and not each.is_taken,
        lambda each: each.second is Outcome.PENDING,
        lambda each: arm_of(each) == "waiting",
    ]


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(st.sampled_from(MOVES), st.integers(0, 150)), max_size=25),
    st.sampled_from([None, *Outcome]),
    st.sampled_from([None, 0, 1]),
    st.sampled_from([None, "treated", "control", "waiting"]),
    st.sampled_from(["", "d0", "1", "late", "none"]),
    st.integers(0, 2**12 - 1),
)
def test_a_page_of_devices_is_cut_from_all_that_fit(
    moves: list[tuple[str, int]], outcome: Outcome | None, wave: int | None, arm: str | None, text: str, sight: int
) -> None:
    story = Story(devices=12, policy=policy(retries=1))
    for what, which in [("tick", 0), *moves]:
        try:
            move(story, what, which)
        except OrderRefused:
            continue
    rollout, roll = story.rollout, roll_of(story.rollout)
    seen = set(roll.names(sight & ((1 << roll.length) - 1)))
    fit = fits(outcome, wave, arm)

    pages: list[Member | Control] = []
    while page := listed(
        rollout, roll, fit, text=text, in_sight=sight, sees=seen.__contains__, start=len(pages), most=3
    ):
        assert len(page) <= 3
        pages += page

    assert pages == [each for each in everybody(rollout) if fit(each) and text in each.device and each.device in seen]


def test_changes_of_several_events_are_followed_at_once() -> None:
    story = Story(devices=12)
    before = story.rollout
    changes = story.tick().changes
    for device in list(story.treated()):
        changes |= story.report(device, True).changes
    changes |= story.tick(1.0).changes

    found = followed(roll_of(before), before, story.rollout, changes)

    assert plain(found) == plain(roll_of(story.rollout)) != plain(roll_of(before))
    assert found.tally.counts["good"] == 2


def test_a_change_that_is_not_named_is_not_followed() -> None:
    story = Story(devices=3)
    member = next(iter(story.rollout.members.values()))
    after = replace(
        story.rollout, members=story.rollout.members.set(member.device, replace(member, outcome=Outcome.LEFT))
    )
    roll = roll_of(story.rollout)

    assert followed(roll, story.rollout, after, Changes()) is roll
    assert plain(followed(roll, story.rollout, after, Changes(frozenset({member.device})))) == plain(roll_of(after))


def test_an_older_roll_stays_what_it_was_when_devices_join() -> None:
    story = Story(devices=3)
    before, first = story.rollout, roll_of(story.rollout)
    story.join("late-1")
    one = followed(first, before, story.rollout, differing(before, story.rollout))
    other_story = Story(devices=3)
    other_story.join("late-2")

    other = followed(first, before, other_story.rollout, differing(before, other_story.rollout))

    assert plain(first) == plain(roll_of(before))
    assert plain(one) == plain(roll_of(story.rollout))
    assert plain(other) == plain(roll_of(other_story.rollout))
    assert first.names(first.where(lambda _: True)) == ["d00000", "d00001", "d00002"]


def test_what_is_said_without_a_roll_takes_it() -> None:
    story = Story(devices=5, policy=policy(approvals=(Approval(before="every", by=("ada",)),)))
    story.tick()

    assert outlook(story.rollout, story.now) == outlook(story.rollout, story.now, roll_of(story.rollout))
    assert gate(story.rollout) == gate(story.rollout, roll_of(story.rollout)) is not None
    assert Order.APPROVE in orders(story.rollout, story.now)


def test_nobody_out_of_sight_is_counted_among_those_who_wait() -> None:
    story = Story(devices=6)
    roll = roll_of(story.rollout)

    found = waiting_of(story.rollout, roll, Present(0b11, {}, lambda _: None, seen=0b101), story.now)

    assert found.counts == {Why.BEGINNING: 1, Why.OFFLINE: 1}
    assert [each.device for each in found.lines(0, 9)] == ["d00000", "d00002"]
