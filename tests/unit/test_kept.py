"""What is kept of huge rollouts: decisions show at once, counts lag a little, small ones never."""

from dataclasses import dataclass, replace

from harness.rollout_story import NEW, OLD, policy
from muster_controller.api.kept import KEPT_MAX, LAG_S_MAX, Kept
from muster_controller.core.rollout.state import Rollout, RolloutState
from muster_shared.ids import ModelName, RolloutId

ROLLOUT = Rollout(
    id=RolloutId("r-1"),
    model=ModelName("digits"),
    release=NEW,
    previous=OLD,
    policy=policy(),
    waves=(1, 2),
    created_at=1.0,
    created_by="anna",
)


@dataclass
class Work:
    """Takes so long each time, and counts how often it was done."""

    takes_s: float
    now: float = 100.0
    done: int = 0

    def __call__(self) -> int:
        self.now += self.takes_s
        self.done += 1
        return self.done


def test_what_is_quick_is_made_anew_each_time() -> None:
    work = Work(takes_s=0.01)
    kept = Kept(lambda: work.now)

    assert [kept.of("panel", "", ROLLOUT, work) for _ in range(3)] == [1, 2, 3]


def test_what_takes_long_is_kept_for_ten_times_as_long() -> None:
    work = Work(takes_s=0.5)
    kept = Kept(lambda: work.now)
    kept.of("panel", "", ROLLOUT, work)

    work.now += 4.9
    soon = kept.of("panel", "", replace(ROLLOUT, settled=7), work)
    work.now += 0.2
    later = kept.of("panel", "", ROLLOUT, work)

    assert (soon, later) == (1, 2)


def test_nothing_lags_by_more_than_fifteen_seconds() -> None:
    work = Work(takes_s=60.0)
    kept = Kept(lambda: work.now)
    kept.of("panel", "", ROLLOUT, work)

    work.now += LAG_S_MAX + 0.1

    assert kept.of("panel", "", ROLLOUT, work) == 2


def test_a_decision_shows_at_once() -> None:
    work = Work(takes_s=1.0)
    kept = Kept(lambda: work.now)
    kept.of("panel", "", ROLLOUT, work)

    assert kept.of("panel", "", replace(ROLLOUT, state=RolloutState.PAUSED), work) == 2
    assert kept.of("panel", "", replace(ROLLOUT, state=RolloutState.PAUSED, wave=1), work) == 3


def test_nobody_is_shown_what_was_made_for_others_eyes() -> None:
    work = Work(takes_s=1.0)
    kept = Kept(lambda: work.now)

    seen = [kept.of("panel", viewer, ROLLOUT, work) for viewer in ("", "site=oslo", "", "site=oslo")]

    assert seen == [1, 2, 1, 2]


def test_what_is_kept_is_bounded() -> None:
    work = Work(takes_s=1.0)
    kept = Kept(lambda: work.now)
    for number in range(KEPT_MAX + 1):
        kept.of("panel", f"v={number}", ROLLOUT, lambda: 0)

    assert kept.of("panel", "v=0", ROLLOUT, work) == 1
    assert len(kept._slots) == KEPT_MAX
