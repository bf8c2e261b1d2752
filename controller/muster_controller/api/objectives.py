"""Routes: service level objectives, and how their error budgets stand."""

from fastapi import APIRouter, Response

from muster_controller.api.authentication import because, require
from muster_controller.api.fleet import Limit
from muster_controller.api.paging import Offset, paged
from muster_controller.api.schemas.alerts import ObjectiveOrder, ObjectivePage, ObjectiveView
from muster_controller.api.services import Given, Services
from muster_controller.db.objective_store import Kept
from muster_controller.operators.roles import Permission

router = APIRouter(prefix="/objectives", tags=["objectives"])

_VIEW, _ADMINISTER = [require(Permission.VIEW)], [require(Permission.ADMINISTER)]


@router.get("", dependencies=_VIEW)
def list_objectives(given: Given, limit: Limit = 100, cursor: Offset = None) -> ObjectivePage:
    """Objectives by name, with what is left of their error budgets."""
    page, following = paged(given.alerts.objectives.objectives(), cursor, limit)
    return ObjectivePage(objectives=[_view(given, each) for each in page], next=following)


@router.get("/{name}", dependencies=_VIEW)
def show_objective(given: Given, name: str) -> ObjectiveView:
    """One objective: how fast its error budget burns, and what is left of it."""
    return _view(given, given.alerts.objectives.objective(name))


@router.put("/{name}", dependencies=_ADMINISTER)
def set_objective(given: Given, name: str, order: ObjectiveOrder) -> ObjectiveView:
    """Set an objective, or put another in its place."""
    with because(order.reason):
        given.alerts.set_objective(name, order.model, order.indicator, order.target, order.device_class)
    return _view(given, given.alerts.objectives.objective(name))


@router.delete("/{name}", status_code=204, dependencies=_ADMINISTER)
def remove_objective(given: Given, name: str) -> Response:
    """Remove it. An alert of it ends by itself."""
    given.alerts.objectives.remove(name)
    return Response(status_code=204)


def _view(given: Services, kept: Kept) -> ObjectiveView:
    objective = kept.objective
    burn = given.alerts.burn(objective)
    return ObjectiveView(
        name=objective.name,
        model=objective.model,
        device_class=objective.device_class,
        indicator=objective.indicator,
        target=objective.target,
        created_at=kept.created_at,
        created_by=kept.created_by,
        requests=burn.requests,
        bad=burn.bad,
        budget_left=burn.left,
        rates={str(window): rate for window, rate in sorted(burn.rates.items())},
    )
