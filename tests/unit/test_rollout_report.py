"""The report of a rollout: nothing of it is lost, nothing of it is anybody's markup, and it is bounded."""

from harness.rollout_story import START, Story, policy
from muster_controller.api.report import EXAMPLES_MAX, FAILURES_MAX, markdown, report, spread, thinned
from muster_controller.api.schemas import EvidencePointView, NoteView
from muster_controller.core.rollout.events import OutcomeArrived
from muster_shared.ids import DeviceId


def ended(reasons: tuple[str, ...] = ("accuracy 0.3",)) -> Story:
    """A first wave of eight in which every second device fails, for these reasons in turn."""
    story = Story(40, policy(waves=(8,), controls_per_device=1))
    story.tick()
    treated = [
        each.device for each in story.assigned if each.device in story.rollout.members and _told(story, each.device)
    ]
    for place, device in enumerate(treated):
        good = place % 2 == 1
        story.tell(OutcomeArrived(device, 0, good, "well" if good else reasons[place // 2 % len(reasons)]), 1.0)
    return story


def _told(story: Story, device: DeviceId) -> bool:
    return bool(story.rollout.members[device].is_touched)


def note(at: float, what: str, detail: str = "") -> NoteView:
    return NoteView(cursor=1, at=at, what=what, subject="r1", detail=detail, actor="ada")


def test_every_device_is_counted_once_in_its_class() -> None:
    story = ended()

    found = report(story.rollout, [], [], story.now)

    assert sum(each.devices for each in found.classes) == 40
    for each in found.classes:
        assert each.good + each.bad + each.pending + each.untouched + each.left == each.devices
    assert sum(each.bad for each in found.classes) == found.counts.bad > 0


def test_failures_are_told_by_reason_with_some_devices_for_example() -> None:
    story = ended(("accuracy 0.3", "too slow"))

    found = report(story.rollout, [], [], story.now)

    assert {each.reason for each in found.failures} == {"accuracy 0.3", "too slow"}
    assert sum(each.devices for each in found.failures) + found.other_failures == found.counts.bad
    assert all(len(each.examples) <= EXAMPLES_MAX for each in found.failures)


def test_devices_that_are_not_the_readers_are_counted_and_not_named() -> None:
    story = ended()

    found = report(story.rollout, [], [], story.now, sees=lambda _: False)

    assert found.failures
    assert [each.examples for each in found.failures] == [[] for _ in found.failures]


def test_more_reasons_than_fit_are_summed_up() -> None:
    story = Story(300, policy(waves=(200,), controls_per_device=0, failure_objective=0.5))
    story.tick()
    for place, each in enumerate(story.assigned):
        if _told(story, each.device) and story.rollout.members[each.device].outcome.value == "pending":
            story.tell(OutcomeArrived(each.device, 0, place % 2 == 1, f"reason {place}"))

    found = report(story.rollout, [], [], story.now)

    assert len(found.failures) == FAILURES_MAX
    assert found.other_failures == found.counts.bad - FAILURES_MAX > 0


def test_orders_and_verdicts_stand_in_the_order_in_which_they_came() -> None:
    story = ended()
    notes = [note(story.now + 50, "rollout_aborted", "by ada"), note(START, "rollout_created")]

    found = report(story.rollout, [], notes, story.now + 60)

    times = [each.at for each in found.timeline]
    assert times == sorted(times)
    assert found.timeline[0].what == "rollout_created"
    assert any(each.what.startswith("verdict_") for each in found.timeline)


def test_what_devices_say_is_no_markup_and_ends_no_cell() -> None:
    story = ended(("a | b <script>\n# heading [x](y)",))

    text = markdown(report(story.rollout, [], [], story.now))

    row = next(line for line in text.splitlines() if "heading" in line)
    assert "a \\| b \\<script\\> # heading \\[x\\](y)" in row


def test_the_markdown_says_who_what_and_the_policy() -> None:
    text = markdown(report(ended().rollout, [], [note(START, "rollout_created")], START + 100))

    for said in ("# digits 2.0.0 over 1.0.0", "by ada", "rollout created", "## By device class", "waves: [8]"):
        assert said in text


def test_a_long_chart_keeps_its_peaks_and_its_end() -> None:
    points = [
        EvidencePointView(at=float(n), wave=0, e=50.0 if n == 777 else 1.0, metrics={}, treated=1, reported=1, bad=0)
        for n in range(2000)
    ]

    kept = thinned(points, 100)

    assert len(kept) <= 101
    assert max(each.e for each in kept) == 50.0
    assert kept[-1] is points[-1]


def test_a_quantile_is_the_smallest_value_that_so_many_do_not_exceed() -> None:
    found = spread([float(n) for n in range(1, 11)])

    assert found is not None
    assert (found.median, found.p90, found.greatest, found.of) == (5.0, 9.0, 10.0, 10)
    assert spread([]) is None
