"""Pages of rollouts: all of them, and one of them live. Creating one and going back is `rollout_new`'s."""

from dataclasses import dataclass, replace
from typing import Annotated, Literal

from fastapi import Query, Request
from fastapi.responses import HTMLResponse

from muster_controller.api.paging import Offset, cut
from muster_controller.api.rollout_presence import in_sight, present
from muster_controller.api.rollout_views import arm_of, listed, member_view, point_view, waiting_views
from muster_controller.api.rollouts import list_rollouts
from muster_controller.api.schemas.rollouts import OutcomeWord
from muster_controller.api.services import Given, Services
from muster_controller.api.views import note_view
from muster_controller.core.rollout.events import Order
from muster_controller.core.rollout.state import Control, Member, Outcome, Rollout, RolloutState
from muster_controller.core.rollout.waiting import waiting_of
from muster_controller.operators.roles import GRANTS, Permission, Principal, inside
from muster_controller.web import rollout_present
from muster_controller.web.frame import pages, render
from muster_shared.ids import RolloutId

ROLLOUTS_SHOWN = 50
MEMBERS_SHOWN = 50
WAITING_SHOWN = 20
NOTES_SHOWN = 50

router = pages()

Arm = Literal["treated", "control", "waiting"]
Text = Annotated[str, Query(max_length=100)]
WaveNumber = Annotated[int | None, Query(ge=1, le=1000, description="From 1.")]


@dataclass(frozen=True)
class Filter:
    """Which devices of a rollout are listed."""

    outcome: OutcomeWord | None
    wave: int | None
    """From 1."""
    arm: Arm | None
    text: str

    def fits(self, each: Member | Control) -> bool:
        """Return whether devices such as `each` are listed; the text is asked of their names apart."""
        arm = arm_of(each)
        return (
            # Without a wish those are listed that a wave has taken.
            (self.arm == arm or (self.arm is None and (arm != "waiting" or bool(self.text))))
            and self.outcome in (None, each.outcome.value)
            and (self.wave is None or each.wave == self.wave - 1)
        )


@router.get("/rollouts")
def rollouts_page(
    request: Request,
    given: Given,
    state: Annotated[str, Query(pattern="^(|running|paused|aborting|aborted|finished)$")] = "",
    model: Annotated[str, Query(max_length=64)] = "",
    q: Text = "",
    cursor: Annotated[str | None, Query(max_length=64)] = None,
) -> HTMLResponse:
    wanted = RolloutState(state) if state else None
    page = list_rollouts(
        given, state=wanted, model=model or None, q=q.strip() or None, limit=ROLLOUTS_SHOWN, cursor=cursor
    )
    return render(
        request,
        "rollouts.html",
        rollouts=page.rollouts,
        next_cursor=page.next,
        filters={"state": state, "model": model, "q": q},
        states=[each.value for each in RolloutState],
        models=sorted({release.model for release in given.releases.releases()}),
        may_begin=may(given.viewer, Permission.OPERATE),
        may_go_back=may_go_back(given),
        now=given.clock(),
    )


@router.get("/rollouts/{rollout_id}")
def rollout_page(
    request: Request,
    given: Given,
    rollout_id: str,
    outcome: Annotated[str, Query(pattern="^(|pending|good|bad|left)$")] = "",
    wave: Annotated[str, Query(pattern="^[0-9]{0,3}$")] = "",
    arm: Annotated[str, Query(pattern="^(|treated|control|waiting)$")] = "",
    q: Text = "",
    cursor: Offset = None,
    why: Annotated[str, Query(max_length=40)] = "",
    waiting: Offset = None,
) -> HTMLResponse:
    rollout, now = given.rollout(RolloutId(rollout_id)), given.clock()
    filters = {"outcome": outcome, "wave": wave, "arm": arm, "q": q, "why": why}
    chosen = Filter(_outcome(outcome), int(wave) if wave else None, _arm(arm), q.strip().lower())
    roll = given.roll(rollout)
    found = listed(
        rollout,
        roll,
        chosen.fits,
        text=chosen.text,
        in_sight=in_sight(given.committed(), roll, given.seats),
        sees=given.sees,
        start=int(cursor or 0),
        most=MEMBERS_SHOWN + 1,
    )
    members, members_next = cut(found, cursor, MEMBERS_SHOWN)
    there = present(given.committed(), roll, given.holds.all(), given.seats)
    waits = waiting_of(rollout, roll, there, now)
    # Those under way stand among the devices of their wave.
    whys = [each for each in waits.places if each not in rollout_present.UNDER_WAY and why in ("", each.value)]
    lines, waiting_next = cut(waits.lines(int(waiting or 0), WAITING_SHOWN + 1, whys), waiting, WAITING_SHOWN)
    panel = panel_of(given, rollout, now)
    return render(
        request,
        "rollout.html",
        panel=panel,
        arms=rollout_present.arm_rows(panel.detail.evidence.strata),
        members=[member_view(each) for each in members],
        members_next=members_next,
        filters=filters,
        is_filtered=any(filters[name] for name in ("outcome", "wave", "arm", "q")),
        outcomes=[each.value for each in Outcome],
        waiting=waiting_views(rollout, roll, lines, there),
        waiting_next=waiting_next,
        waiting_counts=rollout_present.waiting_counts(waits.counts),
        notes=[note_view(entry) for entry in given.reader.notes(subject=rollout.id, limit=NOTES_SHOWN)],
        may_begin=may(given.viewer, Permission.OPERATE),
        may_go_back=may_go_back(given),
        arms_plot=rollout_present.arms_plot,
        now=now,
    )


def panel_of(given: Services, rollout: Rollout, now: float) -> rollout_present.RolloutPanel:
    """Return what is drawn of `rollout`, with the buttons that this viewer may press."""
    points = [point_view(point) for point in given.reader.points(rollout.id)]
    panel = rollout_present.rollout_panel(rollout, points, now, given.sees, given.roll(rollout))
    return replace(
        panel, actions=tuple(each for each in panel.actions if _may_order(given.viewer, rollout, each.order))
    )


def may(who: Principal | None, *wanted: Permission) -> bool:
    return who is not None and set(wanted) <= GRANTS[who.role]


def may_go_back(given: Services) -> bool:
    """Return whether the API would take a rollback at once, which is of every device."""
    return may(given.viewer, Permission.OPERATE) and not given.is_partial


def _may_order(who: Principal | None, rollout: Rollout, order: Order) -> bool:
    """Return whether the API would take this order from `who`: no other button is shown."""
    if who is None or (who.selector and not inside(rollout.policy.selector, who.selector)):
        return False
    wanted = {Permission.OPERATE, Permission.APPROVE} if order is Order.APPROVE else {Permission.OPERATE}
    return wanted <= GRANTS[who.role]


def _outcome(word: str) -> OutcomeWord | None:
    return next((each.value for each in Outcome if each.value == word), None)


def _arm(word: str) -> Arm | None:
    match word:
        case "treated" | "control" | "waiting":
            return word
        case _:
            return None
