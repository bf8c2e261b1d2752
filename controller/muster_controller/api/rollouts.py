"""Routes: rollouts, their evidence, and orders to them."""

from typing import Annotated

import msgspec
from fastapi import APIRouter, Path, Query, Response

from muster_controller.api.history import Reported, evidence_history
from muster_controller.api.schemas import (
    EvidencePointView,
    MemberView,
    Plan,
    Reason,
    RolloutDetail,
    RolloutOrder,
    RolloutPage,
)
from muster_controller.api.services import Given, Services
from muster_controller.api.views import member_views, plan, rollout_detail, rollout_summary
from muster_controller.core.policy import parse_policy
from muster_controller.core.rollout import Order, Rollout
from muster_controller.errors import NotFound
from muster_shared import ids
from muster_shared.ids import ModelName, RolloutId
from muster_shared.messages import OutcomeReported

OUTCOMES_MAX = 50_000  # Events behind one chart.

router = APIRouter(prefix="/rollouts", tags=["rollouts"])


@router.get("")
def list_rollouts(given: Given, limit: Annotated[int, Query(ge=1, le=200)] = 50, offset: int = 0) -> RolloutPage:
    """Rollouts, newest first."""
    found = given.reader.rollouts(limit, offset)
    return RolloutPage(rollouts=[rollout_summary(rollout) for rollout in found])


@router.post("", status_code=201, responses={200: {"model": Plan, "description": "A dry run: what would happen."}})
async def create_rollout(given: Given, order: RolloutOrder, response: Response) -> RolloutDetail | Plan:
    """Start bringing a release to the fleet, or (`dry_run`) say what that would do."""
    policy = parse_policy(msgspec.json.encode(order.policy))
    model, version = ModelName(ids.name(order.model, "model")), ids.version(order.version)
    if order.dry_run:
        response.status_code = 200
        release = given.releases.release(model, version)
        if release is None:
            raise NotFound("model", f"{model} {version}")
        return plan(given.committed(), release, given.releases.manifest(release.bundle_sha256), policy)
    rollout = await given.fleet.call(lambda fleet: fleet.create_rollout(model, version, policy, order.actor))
    response.headers["Location"] = f"/api/v1/rollouts/{rollout.id}"
    return rollout_detail(rollout)


@router.get("/{rollout_id}")
def show_rollout(given: Given, rollout_id: str) -> RolloutDetail:
    """One rollout with its evidence, the counts behind it, and every verdict."""
    return rollout_detail(given.rollout(RolloutId(rollout_id)))


@router.get("/{rollout_id}/members")
def list_members(given: Given, rollout_id: str) -> list[MemberView]:
    """Every device of the rollout: treated and waiting in their random order, then the controls."""
    return member_views(given.rollout(RolloutId(rollout_id)))


@router.get("/{rollout_id}/evidence")
def show_evidence(given: Given, rollout_id: str) -> list[EvidencePointView]:
    """How the evidence grew."""
    return evidence_points(given, given.rollout(RolloutId(rollout_id)))


@router.post("/{rollout_id}/{order}")
async def order_rollout(
    given: Given,
    rollout_id: str,
    order: Annotated[Order, Path(description="What to do.")],
    reason: Reason,
) -> RolloutDetail:
    """Pause, resume, abort or roll back."""
    rollout = await given.fleet.call(
        lambda fleet: fleet.order(RolloutId(rollout_id), order, reason.actor, reason.reason)
    )
    return rollout_detail(rollout)


def evidence_points(given: Services, rollout: Rollout) -> list[EvidencePointView]:
    """Return the history of the evidence, from the outcome events."""
    reports = [
        Reported(entry.event.device, entry.event.body.wave, entry.taken_at)
        for entry in given.reader.events(rollout=rollout.id, limit=OUTCOMES_MAX)
        if isinstance(entry.event.body, OutcomeReported)
    ]
    return [
        EvidencePointView(at=point.at, e=point.e, treated=point.treated, reported=point.reported, bad=point.bad)
        for point in evidence_history(rollout, reports, given.clock())
    ]
