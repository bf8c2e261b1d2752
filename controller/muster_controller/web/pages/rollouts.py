"""Pages of rollouts."""

from dataclasses import replace
from itertools import islice

from fastapi import Request
from fastapi.responses import HTMLResponse

from muster_controller.api.rollout_views import member_views, point_view, presences, rollout_summary, waiting_views
from muster_controller.api.services import Given, Services
from muster_controller.api.views import note_view
from muster_controller.core.rollout.events import Order
from muster_controller.core.rollout.explain import who_waits
from muster_controller.core.rollout.state import Rollout
from muster_controller.operators.roles import GRANTS, Permission, Principal, inside
from muster_controller.web import present
from muster_controller.web.frame import pages, render
from muster_shared.ids import RolloutId

MEMBERS_SHOWN = 1000
WAITING_SHOWN = 200

router = pages()


@router.get("/rollouts")
def rollouts_page(request: Request, given: Given) -> HTMLResponse:
    found = given.reader.rollouts(100)
    return render(request, "rollouts.html", rollouts=[rollout_summary(rollout) for rollout in found], now=given.clock())


@router.get("/rollouts/{rollout_id}")
def rollout_page(request: Request, given: Given, rollout_id: str) -> HTMLResponse:
    rollout, now = given.rollout(RolloutId(rollout_id)), given.clock()
    presence = presences(given.committed().devices, rollout)
    waiting = [each for each in who_waits(rollout, presence, now) if each.why not in present.UNDER_WAY]
    return render(
        request,
        "rollout.html",
        panel=panel_of(given, rollout, now),
        members=list(
            islice(
                (each for each in member_views(rollout) if each.arm != "waiting" and given.sees(each.device)),
                MEMBERS_SHOWN,
            )
        ),
        waiting=waiting_views(rollout, presence, [each for each in waiting if given.sees(each.device)][:WAITING_SHOWN]),
        waiting_counts=present.waiting_counts(waiting),
        notes=[note_view(entry) for entry in given.reader.notes(subject=rollout.id, limit=50)],
        now=now,
    )


def panel_of(given: Services, rollout: Rollout, now: float) -> present.RolloutPanel:
    panel = present.rollout_panel(rollout, [point_view(point) for point in given.reader.points(rollout.id)], now)
    return replace(
        panel, actions=tuple(each for each in panel.actions if _may_order(given.viewer, rollout, each.order))
    )


def _may_order(who: Principal | None, rollout: Rollout, order: Order) -> bool:
    """Return whether the API would take this order from `who`: no other button is shown."""
    if who is None or (who.selector and not inside(rollout.policy.selector, who.selector)):
        return False
    wanted = {Permission.OPERATE, Permission.APPROVE} if order is Order.APPROVE else {Permission.OPERATE}
    return wanted <= GRANTS[who.role]
