"""Routes: rollouts, their evidence, who waits for what, and orders to them."""

from typing import Annotated, Any

import msgspec
from fastapi import APIRouter, Path, Query, Response

from muster_controller.api.authentication import Who, demand, require
from muster_controller.api.paging import Offset, cut, paged
from muster_controller.api.planning import plan
from muster_controller.api.policies import read_policy
from muster_controller.api.report import TIMELINE_MAX, markdown, report
from muster_controller.api.rollout_presence import in_sight, present
from muster_controller.api.rollout_views import (
    arm_of,
    listed,
    member_view,
    point_view,
    rollout_detail,
    rollout_summary,
    summed_view,
    waiting_views,
)
from muster_controller.api.schemas import (
    EvidencePage,
    MemberPage,
    Ordering,
    Plan,
    RollbackOrder,
    RolloutDetail,
    RolloutOrder,
    RolloutPage,
    WaitingPage,
)
from muster_controller.api.schemas.rollout_report import RolloutReport
from muster_controller.api.schemas.rollouts import OutcomeWord
from muster_controller.api.services import Given, Services
from muster_controller.api.views import note_view
from muster_controller.core.policy import Policy, PolicyInvalid
from muster_controller.core.rollout.events import Order
from muster_controller.core.rollout.explain import Why
from muster_controller.core.rollout.outlook import outlook
from muster_controller.core.rollout.state import ENDED, Control, Member, RolloutState
from muster_controller.core.rollout.waiting import waiting_of
from muster_controller.core.selector import contradiction
from muster_controller.core.selector import parse as parse_selector
from muster_controller.operators.errors import Forbidden
from muster_controller.operators.roles import Permission, Principal, inside, narrowed
from muster_shared.ids import ModelName, RolloutId

PAGE_MAX = 1000

router = APIRouter(tags=["rollouts"], dependencies=[require(Permission.VIEW)])

OPERATE = [require(Permission.OPERATE)]

Limit = Annotated[int, Query(ge=1, le=PAGE_MAX, description="At most so many.")]
MARKDOWN_TYPE = "text/markdown; charset=utf-8"
MARKDOWN: dict[int | str, dict[str, Any]] = {200: {"description": "Markdown.", "content": {"text/markdown": {}}}}
PLANNED: dict[int | str, dict[str, Any]] = {200: {"model": Plan, "description": "A dry run: what would happen."}}


@router.get("/rollouts")
def list_rollouts(
    given: Given,
    state: RolloutState | None = None,
    model: Annotated[str | None, Query(max_length=64)] = None,
    q: Annotated[
        str | None, Query(max_length=100, description="What its id, model, creator or reason has somewhere.")
    ] = None,
    limit: Annotated[int, Query(ge=1, le=200, description="At most so many.")] = 50,
    cursor: Annotated[str | None, Query(max_length=64, description="`next` of the page before.")] = None,
) -> RolloutPage:
    """Rollouts, newest first."""
    after = None if cursor is None else given.rollout_id(cursor)
    word = None if state is None else state.value
    fleet = given.committed()
    ended = given.reader.ended.taken()
    known = {key: rollout for key, rollout in fleet.running.items() if key in fleet.tallies}
    tallies = {**fleet.tallies, **{key: roll.tally for key, (_, roll) in ended.items()}}
    known |= {key: rollout for key, (rollout, _) in ended.items()}
    found = given.reader.summed(limit, model=model, state=word, after=after, text=q, known=known)
    views = [
        rollout_summary(each.rollout, tallies[each.rollout.id])
        if known.get(each.rollout.id) is each.rollout
        else summed_view(each)
        for each in found
    ]
    return RolloutPage(rollouts=views, next=views[-1].id if len(views) == limit else None)


@router.post("/rollouts", status_code=201, responses=PLANNED, dependencies=OPERATE)
async def create_rollout(given: Given, who: Who, order: RolloutOrder, response: Response) -> RolloutDetail | Plan:
    """Start bringing a release to the fleet, or (`dry_run`) say what that would do."""
    policy = within(read_policy(order.policy), who)
    release = given.release(order.model, order.version)
    if order.dry_run:
        response.status_code = 200
        return plan(given.committed(), release, given.releases.manifest, policy, given.holds)
    rollout = await given.fleet.call(
        lambda fleet: fleet.create_rollout(release.model, release.version, policy, who.name)
    )
    response.headers["Location"] = f"/api/v1/rollouts/{rollout.id}"
    return rollout_detail(rollout, given.clock(), given.roll(rollout))


@router.post("/models/{model}/rollback", status_code=201, responses=PLANNED, dependencies=OPERATE)
async def roll_back_model(
    given: Given, who: Who, model: str, order: RollbackOrder, response: Response
) -> RolloutDetail | Plan:
    """Bring the fleet to an earlier release: at once, or by a rollout of the policy that is given."""
    if order.policy is not None and order.at_once:
        raise PolicyInvalid("at_once waits for no policy; give one of them", "at_once")
    if order.policy is None and order.at_once is False:
        raise PolicyInvalid("without at_once it goes by a policy; give one", "policy")
    policy = None if order.policy is None else within(read_policy(order.policy), who)
    if policy is None and who.selector:
        raise Forbidden(
            f"a rollback at once is of every device, and yours are those of {who.selector}; give a policy:"
            " then it goes to them alone"
        )
    release = given.release(model, order.to)
    if order.dry_run:
        response.status_code = 200
        return plan(given.committed(), release, given.releases.manifest, policy, given.holds)
    rollout = await given.fleet.call(
        lambda fleet: fleet.roll_back(ModelName(model), order.to, who.name, order.reason, policy)
    )
    response.headers["Location"] = f"/api/v1/rollouts/{rollout.id}"
    return rollout_detail(rollout, given.clock(), given.roll(rollout))


@router.get("/rollouts/{rollout_id}")
def show_rollout(given: Given, rollout_id: str) -> RolloutDetail:
    """One rollout with its evidence, the counts and terms behind it, every verdict, and what happens next."""
    rollout = given.rollout(RolloutId(rollout_id))
    return rollout_detail(rollout, given.clock(), given.roll(rollout))


@router.get("/rollouts/{rollout_id}/members")
def list_members(
    given: Given,
    rollout_id: str,
    outcome: OutcomeWord | None = None,
    wave: Annotated[int | None, Query(ge=0, description="From 0.")] = None,
    arm: Annotated[str | None, Query(pattern="^(treated|control|waiting)$")] = None,
    q: Annotated[str | None, Query(max_length=100, description="What the device's id has somewhere.")] = None,
    limit: Limit = PAGE_MAX,
    cursor: Offset = None,
) -> MemberPage:
    """Every device of the rollout: treated and waiting in their random order, then the controls."""

    def fits(each: Member | Control) -> bool:
        return outcome in (None, each.outcome.value) and wave in (None, each.wave) and arm in (None, arm_of(each))

    rollout = given.rollout(RolloutId(rollout_id))
    roll = given.roll(rollout)
    found = listed(
        rollout,
        roll,
        fits,
        text=(q or "").strip().lower(),
        in_sight=in_sight(given.committed(), roll, given.seats),
        sees=given.sees,
        start=int(cursor or 0),
        most=limit + 1,
    )
    page, following = cut(found, cursor, limit)
    return MemberPage(members=[member_view(each) for each in page], next=following)


@router.get("/rollouts/{rollout_id}/waiting")
def list_waiting(
    given: Given,
    rollout_id: str,
    why: Annotated[Why | None, Query(description="Only those that wait for this.")] = None,
    limit: Limit = PAGE_MAX,
    cursor: Offset = None,
) -> WaitingPage:
    """Each device that has no outcome yet, or is out of it, and why."""
    rollout, now = given.rollout(RolloutId(rollout_id)), given.clock()
    roll = given.roll(rollout)
    there = present(given.committed(), roll, given.holds.all(), given.seats)
    found = waiting_of(rollout, roll, there, now)
    lines = found.lines(int(cursor or 0), limit + 1, None if why is None else (why,))
    page, following = cut(lines, cursor, limit)
    return WaitingPage(
        waiting=waiting_views(rollout, roll, page, there),
        next=following,
        counts=dict(sorted(found.counts.items(), key=lambda each: each[0].value)),
        outlook=outlook(rollout, now, roll),
        due_at=None if rollout.state in ENDED else rollout.due_at,
    )


@router.get("/rollouts/{rollout_id}/evidence")
def show_evidence(given: Given, rollout_id: str, limit: Limit = PAGE_MAX, cursor: Offset = None) -> EvidencePage:
    """How the evidence grew: a point whenever it moved, reports came in, or the state changed."""
    points = given.reader.points(given.rollout_id(rollout_id))
    page, following = paged(points, cursor, limit)
    return EvidencePage(points=[point_view(point) for point in page], next=following)


@router.get("/rollouts/{rollout_id}/report")
def report_rollout(given: Given, rollout_id: str) -> RolloutReport:
    """What was ordered, what came of it and why: one document to keep and to share."""
    return report_of(given, rollout_id)


@router.get("/rollouts/{rollout_id}/report.md", response_class=Response, responses=MARKDOWN)
def report_rollout_in_words(given: Given, rollout_id: str) -> Response:
    """The same as Markdown."""
    return Response(markdown(report_of(given, rollout_id)), media_type=MARKDOWN_TYPE)


def report_of(given: Services, rollout_id: str) -> RolloutReport:
    """Raises NotFound."""
    rollout = given.rollout(RolloutId(rollout_id))
    points = [point_view(point) for point in given.reader.points(rollout.id)]
    notes = [note_view(each) for each in given.reader.notes(subject=rollout.id, limit=TIMELINE_MAX)]
    return report(rollout, points, notes, given.clock(), given.sees, given.roll(rollout))


@router.post("/rollouts/{rollout_id}/{order}", dependencies=OPERATE)
async def order_rollout(
    given: Given,
    who: Who,
    rollout_id: str,
    order: Annotated[Order, Path(description="What to do.")],
    said: Ordering,
) -> RolloutDetail:
    """Pause, resume, skip, retry, extend, approve, abort or roll back."""
    if order is Order.APPROVE:
        demand(who, Permission.APPROVE)
    if who.selector and not inside(given.rollout(RolloutId(rollout_id)).policy.selector, who.selector):
        raise Forbidden(
            f"{rollout_id} is of devices beyond yours, which are those of {who.selector}; somebody who has them all"
            " can order this"
        )
    seconds = 0.0 if said.seconds is None else said.seconds
    rollout = await given.fleet.call(
        lambda fleet: fleet.order(RolloutId(rollout_id), order, who.name, said.reason, seconds)
    )
    return rollout_detail(rollout, given.clock(), given.roll(rollout))


def within(policy: Policy, who: Principal) -> Policy:
    """Return the policy for those devices alone that are the principal's. Raises SelectorInvalid, Forbidden."""
    if not who.selector:
        return policy
    both = narrowed(policy.selector, who.selector)
    if contradiction(parse_selector(both)) is not None and contradiction(parse_selector(policy.selector)) is None:
        raise Forbidden(f"{policy.selector} selects no device of yours, which are those of {who.selector}")
    return msgspec.structs.replace(policy, selector=both)
